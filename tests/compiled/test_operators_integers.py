"""Operators over integers: each against onnxruntime's own, and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.frontends import open_model
from tests.support.quantised import as_defined, compiled, exact_peer
from tests.support.seed_modules import Array

MICROSOFT = "com.microsoft"
node = helper.make_node
RANDOM = np.random.default_rng(0)


def steps(name: str, scale: Any, zero: Any) -> dict[str, Array]:
    return {f"{name}_s": np.asarray(scale, np.float32), f"{name}_z": np.asarray(zero)}


def model(
    nodes: list[onnx.NodeProto],
    arrays: dict[str, Any],
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, int],
    opset: int = 17,
) -> onnx.ModelProto:
    """Real inputs, and outputs of these types."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def every_operator(dtype: Any) -> onnx.ModelProto:
    """Images x and z as integers, and each operator's output, integers too."""
    shift = 0 if dtype is np.uint8 else 128
    signed = np.int8
    arrays: dict[str, Any] = {
        **steps("x", 0.03173, dtype(120 - shift)),
        **steps("z", 0.05039, dtype(140 - shift)),
        **steps("y", 0.06121, dtype(131 - shift)),
        **steps("w", RANDOM.uniform(0.002, 0.006, 8), np.zeros(8, signed)),
        **steps("v", 0.004, signed(0)),
        **steps("c", RANDOM.uniform(0.002, 0.006, 5), np.zeros(5, signed)),
        "w": RANDOM.integers(-127, 128, (8, 4, 3, 3)).astype(signed),
        "bias": RANDOM.integers(-9000, 9000, 8).astype(np.int32),
        "m": RANDOM.integers(-127, 128, (36, 5)).astype(signed),
        "mt": RANDOM.integers(-127, 128, (5, 36)).astype(signed),
        "mb": RANDOM.integers(-9000, 9000, 5).astype(np.int32),
        "rows": np.array([8, 36]),
    }

    def of(name: str) -> list[str]:
        return [f"{name}_q", f"{name}_s", f"{name}_z"]

    y = ["y_s", "y_z"]
    conv: dict[str, Any] = {"pads": [1, 0, 1, 1], "strides": [2, 1], "group": 2}
    pool: dict[str, Any] = {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], "strides": [2, 1]}
    made = [
        node("QLinearConv", [*of("x"), "w", "w_s", "w_z", *y, "bias"], ["conv"], **conv),
        node("QLinearConv", [*of("x"), "w", "v_s", "v_z", *y], ["plain"], **conv),
        node("QLinearAdd", [*of("x"), *of("z"), *y], ["add"], domain=MICROSOFT),
        node("QLinearMul", [*of("x"), *of("z"), *y], ["mul"], domain=MICROSOFT),
        node("QLinearConcat", [*y, *of("x"), *of("z")], ["joined"], domain=MICROSOFT, axis=1),
        node("QLinearGlobalAveragePool", [*of("x"), *y], ["mean"], domain=MICROSOFT),
        node("QLinearAveragePool", [*of("x"), *y], ["pool"], domain=MICROSOFT, **pool),
        node("QLinearAveragePool", [*of("x"), *y], ["padded"], domain=MICROSOFT, **pool,
             count_include_pad=1),
        node("QLinearSigmoid", [*of("x"), *y], ["sigmoid"], domain=MICROSOFT),
        node("QLinearLeakyRelu", [*of("x"), *y], ["leaky"], domain=MICROSOFT, alpha=0.2),
        node("Reshape", ["x_q", "rows"], ["r_q"]),
        node("QLinearMatMul", ["r_q", "x_s", "x_z", "m", "v_s", "v_z", *y], ["matmul"]),
        node("QGemm", ["r_q", "x_s", "x_z", "m", "c_s", "c_z", "mb", *y], ["gemm"],
             domain=MICROSOFT),
        node("QGemm", ["r_q", "x_s", "x_z", "mt", "v_s", "v_z", "mb"], ["real"], transB=1,
             alpha=0.5, domain=MICROSOFT),
        node("MaxPool", ["x_q"], ["most"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Transpose", ["x_q"], ["turned"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    quantised = [node("QuantizeLinear", [n, f"{n}_s", f"{n}_z"], [f"{n}_q"]) for n in "xz"]
    whole = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = [entry.output[0] for entry in made if entry.output[0] != "r_q"]
    outputs = {name: TensorProto.FLOAT if name == "real" else whole for name in names}
    shapes = {"x": (2, 8, 3, 6), "z": (2, 8, 3, 6)}
    return model([*quantised, *made], arrays, shapes, outputs)


@exact_peer
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_every_operator_is_a_step_from_onnxruntimes_at_most(dtype: Any, tmp_path: Path) -> None:
    proto = every_operator(dtype)
    feeds = {name: RANDOM.normal(size=(2, 8, 3, 6)).astype(np.float32) * 2 for name in "xz"}
    expected = as_defined(proto, feeds)
    found = compiled(proto, tmp_path).run(feeds)
    assert list(found) == [output.name for output in proto.graph.output]
    for name, values in zip(found, expected, strict=True):
        assert found[name].dtype == values.dtype and found[name].shape == values.shape, name
        if name == "real":
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
            continue
        apart = np.abs(found[name].astype(int) - values.astype(int))
        assert apart.max() <= 1, name
        assert (apart == 0).mean() >= 0.95, name
        assert len(np.unique(values)) > 5, name  # and not all of it saturates


def dynamic(weight: Array, *, cast: bool, zero: int = 0, matrix: bool = False) -> onnx.ModelProto:
    """x quantised as it comes, the integers' convolution or product, and real numbers of it."""
    operator = "MatMulInteger" if matrix else "ConvInteger"
    given: dict[str, Any] = {} if matrix else {"pads": [1] * 4}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        node(operator, ["q", "w", "z", "wz"], ["sums"], **given),
        node("Cast", ["sums"], ["counted"], to=TensorProto.FLOAT),
        node("Mul", ["s", "ws"], ["factor"]),
        node("Mul", ["counted", "factor"], ["y"]),
    ]
    arrays: dict[str, Any] = {
        "w": weight,
        "wz": np.array(zero, weight.dtype),
        "ws": np.array(0.01, np.float32),
    }
    outputs = {"y": TensorProto.FLOAT} if cast else {"sums": TensorProto.INT32}
    shape = (6, weight.shape[0]) if matrix else (1, weight.shape[1], 7, 6)
    return model(nodes if cast else nodes[:2], arrays, {"x": shape}, outputs)


@exact_peer
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("zero", [0, 3])
def test_dynamically_quantised_layers(matrix: bool, zero: int, tmp_path: Path) -> None:
    shape = (200, 6) if matrix else (6, 200, 3, 3)
    weight = RANDOM.integers(-127, 128, shape).astype(np.int8)
    proto = dynamic(weight, cast=True, zero=zero, matrix=matrix)
    (layer,) = open_model(proto).graph.layers()
    assert layer.integers is not None and layer.integers.values.dtype == np.int8
    session = compiled(proto, tmp_path)
    for scale in (1.0, 0.0):  # a tensor of zeros has a scale too
        shape = tuple(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim)
        x = RANDOM.normal(size=shape).astype(np.float32) * np.float32(scale)
        (expected,) = as_defined(proto, {"x": x})
        found = session.run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected) + 1e-9)


def test_sums_that_are_read_as_integers_are_exact(tmp_path: Path) -> None:
    weight = RANDOM.integers(-127, 128, (6, 40, 3, 3)).astype(np.int8)
    proto = dynamic(weight, cast=False)
    x = RANDOM.normal(size=(1, 40, 7, 6)).astype(np.float32)
    (expected,) = as_defined(proto, {"x": x})
    np.testing.assert_array_equal(compiled(proto, tmp_path).run({"x": x})["sums"], expected)


def refusal(proto: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedOperatorError) as caught:
        open_model(proto).to_relax()
    return str(caught.value)


def test_sums_beyond_what_float32_counts_are_refused() -> None:
    weight = np.full((2, 80, 30, 30), 127, np.int8)
    proto = dynamic(weight, cast=False)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 40
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 40
    assert "its sums may exceed 2**24" in refusal(proto)


def test_what_has_to_be_constant_is_named() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearConv", ["q", "s", "z", "w", "s", "wz", "ys", "z"], ["c"], name="first"),
        node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    arrays: dict[str, Any] = {
        "s": np.array(0.1, np.float32), "z": np.array(3, np.uint8), "wz": np.array(0, np.int8),
        "w": np.ones((4, 3, 1, 1), np.int8),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, 4, 4), "ys": ()}
    proto = model(nodes, arrays, shapes, {"y": TensorProto.FLOAT})
    text = refusal(proto)
    assert "QLinearConv (node first)" in text and "output scale ys is computed when" in text


def test_others_of_onnxruntimes_operators_are_refused_by_name() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearSoftmax", ["q", "s", "z", "s", "z"], ["c"], domain=MICROSOFT, name="last",
             axis=1, opset=13),
        node("DequantizeLinear", ["c", "s", "z"], ["y"]),
    ]  # fmt: skip
    arrays: dict[str, Any] = {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)}
    proto = model(nodes, arrays, {"x": (1, 3)}, {"y": TensorProto.FLOAT})
    assert "QLinearSoftmax (node last)" in refusal(proto)
    # One that lacks its inputs is no reason to fail either.
    del nodes[1].input[1:]
    nodes[1].op_type = "QLinearAdd"
    proto = model(nodes, arrays, {"x": (1, 3)}, {"y": TensorProto.FLOAT})
    assert "QLinearAdd (node last)" in refusal(proto)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_onnxruntimes_own_quantisation(dtype: Any, tmp_path: Path) -> None:
    wide = np.iinfo(dtype).bits == 16
    scale = 1e-4 if wide else 0.02
    arrays: dict[str, Any] = {
        **steps("x", scale, dtype(100)),
        **steps("w", np.full(4, 1e-3), np.zeros(4, np.int16)),
        "w_q": RANDOM.integers(-3000, 3000, (4, 3, 3, 3)).astype(np.int16),
    }
    nodes = [
        node("QuantizeLinear", ["x", "x_s", "x_z"], ["q"], domain=MICROSOFT),
        node("DequantizeLinear", ["q", "x_s", "x_z"], ["d"], domain=MICROSOFT),
        node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w"], domain=MICROSOFT, axis=0),
        node("Conv", ["d", "w"], ["y"]),
    ]
    proto = model(nodes, arrays, {"x": (1, 3, 6, 6)}, {"y": TensorProto.FLOAT})
    (layer,) = open_model(proto).graph.layers()
    assert layer.integers is not None and layer.integers.values.dtype == np.int16
    x = RANDOM.normal(size=(1, 3, 6, 6)).astype(np.float32)
    (expected,) = as_defined(proto, {"x": x})
    found = compiled(proto, tmp_path).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected))


@exact_peer
def test_models_of_older_operator_sets_are_converted(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "x_s", "x_z"], ["q"]),
        node("QLinearConv", ["q", "x_s", "x_z", "w", "w_s", "w_z", "x_s", "x_z"], ["c"]),
        node("DequantizeLinear", ["c", "x_s", "x_z"], ["y"]),
    ]
    arrays: dict[str, Any] = {
        **steps("x", 0.04, np.uint8(120)),
        **steps("w", np.linspace(0.001, 0.004, 4), np.zeros(4, np.int8)),
        "w": RANDOM.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
    }
    proto = model(nodes, arrays, {"x": (1, 3, 6, 6)}, {"y": TensorProto.FLOAT}, opset=11)
    x = RANDOM.normal(size=(1, 3, 6, 6)).astype(np.float32)
    (expected,) = as_defined(proto, {"x": x})
    found = compiled(proto, tmp_path).run({"x": x})["y"]
    assert float(np.abs(found - expected).max()) <= 0.0404
    onnx.checker.check_model(open_model(proto).native())
