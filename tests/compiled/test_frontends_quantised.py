"""Quantised models as tools write them: integers up to Relax, and results of onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

from nmcompile import inspect
from nmcompile.folding import open_folded
from nmcompile.passes.permute_channels import PermuteChannels
from nmcompile.passes.pipeline import check_graph
from nmcompile.sparsity import NM
from tests.support.examples import is_thorough
from tests.support.quantised import (
    as_defined,
    compiled,
    exact_peer,
    images,
    output_step,
    quantised_onnx,
    targets_here,
    weight_dtypes,
)
from tests.support.seed_modules import Array

U8, S8 = QuantType.QUInt8, QuantType.QInt8
QDQ: dict[str, dict[str, Any]] = {
    "unsigned activations, per channel": {
        "activation_type": U8, "weight_type": S8, "per_channel": True,
    },
    "unsigned and asymmetric": {"activation_type": U8, "weight_type": U8},
    "16 bits in its own domain": {
        "activation_type": QuantType.QUInt16, "weight_type": S8, "per_channel": True,
        "extra_options": {"UseQDQContribOps": True},
    },
    "pairs around weights, one for each reader": {
        "activation_type": U8, "weight_type": S8,
        "extra_options": {"AddQDQPairToWeight": True, "DedicatedQDQPair": True},
    },
    "signed and symmetric": {
        "activation_type": S8, "weight_type": S8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "reduced range": {
        "activation_type": S8, "weight_type": S8, "reduce_range": True, "per_channel": True,
    },
    "4 bits": {"activation_type": S8, "weight_type": QuantType.QInt4},
}  # fmt: skip
USUAL = 4
"""So many of them are a part of every run."""


def assert_one_step(found: Array, expected: Array, step: float) -> None:
    """Equal but for single steps in a few elements; step 0 stands for real numbers."""
    if not step:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        return
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) <= 1.01 * step
    assert float((found == expected).mean()) >= 0.9


def assert_agrees(model: onnx.ModelProto, folder: Path, dtypes: set[str], turn: int) -> None:
    """The weights are stored as said up to Relax, and the artifact computes the model.

    In `make test` for one of the targets, whose turn it is.
    """
    source, _ = open_folded(model)
    check_graph(source.graph)
    assert set(weight_dtypes(source.to_relax())) == dtypes
    name, feeds = model.graph.output[0].name, images(8, seed=9)
    expected = np.concatenate([as_defined(model, {"x": x})[0] for x in feeds])
    targets = targets_here()
    for target in targets if is_thorough() else [targets[turn % len(targets)]]:
        session = compiled(model, folder, target=target)
        found = np.concatenate([session.run({"x": x})[name] for x in feeds])
        assert_one_step(found, expected, output_step(model))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=[pytest.mark.long] if index >= USUAL else [])
        for index, form in enumerate(QDQ)
    ],
)
def test_onnxruntimes_pairs(form: str, tmp_path: Path) -> None:
    model = quantised_onnx(quant_format=QuantFormat.QDQ, **QDQ[form])
    stored = {U8: "uint8", S8: "int8"}.get(QDQ[form]["weight_type"], "int8")
    assert_agrees(model, tmp_path, {stored}, list(QDQ).index(form))
    assert {layer.name for layer in inspect(model).layers} >= {"wide", "narrow", "head"}


@exact_peer
def test_onnxruntimes_operators(tmp_path: Path) -> None:
    model = quantised_onnx(
        quant_format=QuantFormat.QOperator, activation_type=U8, weight_type=S8, per_channel=True
    )
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= {n.op_type for n in model.graph.node}
    names = {layer.name for layer in open_folded(model)[0].graph.layers()}
    assert names == {"stem", "wide", "depth", "narrow", "head"}
    assert_agrees(model, tmp_path, {"int8"}, 1)


def test_onnxruntimes_dynamic_quantisation(tmp_path: Path) -> None:
    model = quantised_onnx(dynamic=True, weight_type=U8, per_channel=True)
    assert {"ConvInteger", "MatMulInteger"} <= {n.op_type for n in model.graph.node}
    assert_agrees(model, tmp_path, {"uint8"}, 0)


def tiny(
    nodes: Sequence[onnx.NodeProto],
    arrays: dict[str, Any],
    shape: Sequence[int] = (1, 8, 6, 6),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
MATRIX = RANDOM.integers(-127, 128, (36, 5)).astype(np.int8)
STEPS = RANDOM.uniform(0.001, 0.004, 8).astype(np.float32)
node = helper.make_node


def conv(*made: onnx.NodeProto, limited: bool = False) -> list[onnx.NodeProto]:
    """`made` gives w; the activation is quantised, and the output too."""
    clip = [node("Clip", ["q"], ["c"]), node("Clip", ["q", "low", "high"], ["c"])][limited]
    return [
        *made,
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        clip,
        node("DequantizeLinear", ["c", "xs", "xz"], ["d"]),
        node("Conv", ["d", "w"], ["f"], pads=[1] * 4),
        node("QuantizeLinear", ["f", "ys", "yz"], ["p"]),
        node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]


def matmul(*made: onnx.NodeProto, gemm: bool = False) -> list[onnx.NodeProto]:
    """`made` gives w, 36 to 5, for x in rows of 36."""
    return [*made, node("Reshape", ["x", "rows"], ["r"]), node("Gemm" if gemm else "MatMul",
            ["r", "w"], ["y"])]  # fmt: skip


def dequantise(axis: int | None = None) -> onnx.NodeProto:
    given: dict[str, Any] = {} if axis is None else {"axis": axis}
    return node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], **given)


SPELLINGS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "a float weight, quantised and dequantised": (
        conv(node("QuantizeLinear", ["w0", "ws", "wz"], ["wq"], axis=0), dequantise(0)),
        {"w0": WEIGHT * STEPS[:, None, None, None], "ws": STEPS, "wz": np.zeros(8, np.int8)},
        "int8",
    ),
    "no zero point": (
        conv(node("QuantizeLinear", ["w0", "ws"], ["wq"], output_dtype=TensorProto.INT8),
             node("DequantizeLinear", ["wq", "ws"], ["w"])),
        {"w0": WEIGHT * np.float32(0.002), "ws": np.float32(0.002)},
        "int8",
    ),
    "a scale of one element, as a Constant": (
        conv(node("Constant", [], ["ws"], value_floats=[0.002]),
             node("Constant", [], ["wz"], value=numpy_helper.from_array(np.array([3], np.int8))),
             dequantise()),
        {"wq": WEIGHT},
        "int8",
    ),
    "an axis from the end": (
        conv(dequantise(-4)), {"wq": WEIGHT, "ws": STEPS, "wz": np.zeros(8, np.int8)}, "int8",
    ),
    "narrow ranges, clipped as integers": (
        conv(node("Clip", ["w0", "low", "high"], ["wq"]), dequantise(), limited=True),
        {"w0": WEIGHT, "ws": np.float32(0.002), "wz": np.int8(0)},
        "int8",
    ),
    "a weight reshaped behind it": (
        conv(node("DequantizeLinear", ["wq", "ws", "wz"], ["w0"], axis=0),
             node("Reshape", ["w0", "shape"], ["w"])),
        {"wq": WEIGHT.reshape(8, 72), "ws": STEPS, "wz": np.zeros(8, np.int8),
         "shape": np.array([8, 8, 3, 3])},
        "int8",
    ),
    "an unsigned weight per channel": (
        conv(dequantise(0)),
        {"wq": (WEIGHT.astype(np.int16) + 128).astype(np.uint8), "ws": STEPS,
         "wz": np.arange(124, 132).astype(np.uint8)},
        "uint8",
    ),
    "a matrix, inputs first": (
        matmul(dequantise(1)),
        {"wq": MATRIX, "ws": STEPS[:5], "wz": np.zeros(5, np.int8)},
        "int8",
    ),
    "a matrix transposed behind it": (
        matmul(node("DequantizeLinear", ["wq", "ws", "wz"], ["w0"], axis=0),
               node("Transpose", ["w0"], ["w"], perm=[1, 0])),
        {"wq": np.ascontiguousarray(MATRIX.T), "ws": STEPS[:5], "wz": np.zeros(5, np.int8)},
        "int8",
    ),
    "Gemm, inputs first": (
        matmul(dequantise(1), gemm=True),
        {"wq": MATRIX, "ws": STEPS[:5], "wz": np.zeros(5, np.int8)},
        "int8",
    ),
    "activations with a scale for each channel": (
        conv(dequantise(0)),
        {"wq": WEIGHT, "ws": STEPS, "wz": np.zeros(8, np.int8),
         "xs": np.linspace(0.01, 0.03, 8, dtype=np.float32), "xz": np.arange(8).astype(np.int8)},
        "int8",
    ),
    "16 bits": (
        conv(dequantise(0)),
        {"wq": WEIGHT.astype(np.int16) * 200, "ws": STEPS / 200, "wz": np.zeros(8, np.int16)},
        "int16",
    ),
    "a masked weight is folded": (
        conv(node("DequantizeLinear", ["wq", "ws", "wz"], ["w0"]), node("Mul", ["w0", "m"], ["w"])),
        {"wq": WEIGHT, "ws": np.float32(0.002), "wz": np.int8(0),
         "m": (WEIGHT > 0).astype(np.float32)},
        "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_weights(spelling: str, tmp_path: Path) -> None:
    nodes, arrays, stored = SPELLINGS[spelling]
    shared: dict[str, Any] = {
        "xs": np.float32(0.02), "xz": np.int8(5), "ys": np.float32(0.03), "yz": np.int8(5),
        "rows": np.array([8, 36]), "low": np.int8(-100), "high": np.int8(90),
    }  # fmt: skip
    used = {name for entry in nodes for name in entry.input}
    arrays = {name: a for name, a in (shared | arrays).items() if name in used}
    model = tiny(nodes, arrays, opset=21)
    x = RANDOM.normal(size=(1, 8, 6, 6)).astype(np.float32) * 2
    source, _ = open_folded(model)
    assert weight_dtypes(source.to_relax()) == [stored]
    (found,) = compiled(model, tmp_path).run({"x": x}).values()
    assert_one_step(found, as_defined(model, {"x": x})[0], output_step(model))


def test_a_number_may_be_quantised(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["kq", "ks", "kz"], ["k"]),
        node("Mul", ["x", "k"], ["m"]),
        dequantise(0),
        node("Conv", ["m", "w"], ["y"]),
    ]
    arrays = {"kq": np.int8(100), "ks": np.float32(0.01), "kz": np.int8(3), "wq": WEIGHT}
    model = tiny(nodes, arrays | {"ws": STEPS, "wz": np.zeros(8, np.int8)})
    (x,) = images(1, shape=(1, 8, 6, 6))
    found = compiled(model, tmp_path).run({"x": x})["y"]
    np.testing.assert_allclose(found, as_defined(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("zero", [0, 7])
def test_halves_and_what_is_no_number_are_quantised_as_onnxruntime_does(
    dtype: Any, zero: int, tmp_path: Path
) -> None:
    # Steps of a power of two: every quotient is exact, halves too.
    step = np.float32(0.125)
    odd = [np.inf, -np.inf, np.nan, 1e30, -1e30, 2.0**31, -(2.0**31) - 256, 0.0, -0.0, 1e-42]
    x = np.concatenate([np.arange(-400, 400, 0.5), odd]).astype(np.float32) * step
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = tiny(nodes, {"s": step, "z": dtype(zero)}, x.shape)
    found = compiled(model, tmp_path).run({"x": x})["y"]
    np.testing.assert_array_equal(found, as_defined(model, {"x": x})[0])


def test_integers_are_kept_where_they_can_stand_for_an_edited_weight() -> None:
    model = tiny(
        [dequantise(0), node("Conv", ["x", "w"], ["y"])],
        {"wq": WEIGHT, "ws": STEPS, "wz": np.zeros(8, np.int8)},
    )
    source, _ = open_folded(model)
    (op,) = [op for op in source.graph.ops() if op.kind == "conv"]
    assert op.weight is not None
    pruned = op.weight * (np.abs(op.weight) > 0.1)
    source.graph.set_weight(op, pruned, None)
    (layer,) = source.graph.layers()
    assert layer.integers is not None
    np.testing.assert_array_equal(layer.weight, pruned)
    np.testing.assert_array_equal(layer.integers.values, WEIGHT * (pruned != 0))

    (op,) = [op for op in source.graph.ops() if op.kind == "conv"]
    factors = np.linspace(0.1, 3, 8)[:, None, None, None].astype(np.float32)
    source.graph.set_weight(op, pruned * factors, None)
    (layer,) = source.graph.layers()
    assert layer.integers is not None
    np.testing.assert_allclose(layer.weight, pruned * factors, rtol=1e-6)

    (op,) = [op for op in source.graph.ops() if op.kind == "conv"]
    other = RANDOM.normal(size=WEIGHT.shape).astype(np.float32)
    source.graph.set_weight(op, other, None)
    (layer,) = source.graph.layers()
    assert layer.integers is None
    np.testing.assert_array_equal(layer.weight, other)
    check_graph(source.graph)


def test_channels_of_quantised_models_are_reordered() -> None:
    model = quantised_onnx(quant_format=QuantFormat.QDQ, **QDQ["unsigned activations, per channel"])
    source, _ = open_folded(model)
    before = {layer.name: layer.integers for layer in source.graph.layers()}
    result = PermuteChannels(NM(1, 4), {"wide", "depth", "narrow"}).call(source.graph)
    assert result.modified
    check_graph(source.graph)
    moved = {layer.name: layer.integers for layer in source.graph.layers()}
    for name in ("wide", "narrow"):
        old, new = before[name], moved[name]
        assert old is not None and new is not None
        assert not np.array_equal(old.values, new.values)
    for x in images(3):
        (found,), (expected,) = (as_defined(m, {"x": x}) for m in (source.native(), model))
        assert_one_step(found, expected, output_step(model))
