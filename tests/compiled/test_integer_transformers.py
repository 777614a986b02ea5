"""Transformers on integers: products of any rank, and what stays in float32 between them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

import nmcompile as nmc
from nmcompile.sparsity import parse_pattern, project
from tests.support.attention_models import VisionTransformer
from tests.support.quantised import as_defined, images, output_step, quantised
from tests.support.seed_modules import Array, export_onnx

pytestmark = pytest.mark.isa("avx512_vnni")
node = helper.make_node
PATTERNS = {"dense": "dense", "half": "2:4", "quarter": "1:4", "blocks": "1x16"}
STEP, WEIGHT_STEP = np.float32(2**-5), np.float32(2**-9)
"""Powers of two: what a sum stands for is exact in float32."""


def integer_weight(random: np.random.Generator, shape: tuple[int, int], pattern: str) -> Array:
    """Int8 (in, out) with a pattern along the inputs of each output."""
    drawn = random.integers(1, 128, shape[::-1]) * random.choice([-1, 1], shape[::-1])
    density = 0.25 if pattern == "1x16" else None
    kept = project(drawn.astype(np.float32), parse_pattern(pattern), density)
    return np.ascontiguousarray(kept.T.astype(np.int8))


def products(shape: tuple[int, ...], outputs: int, zero: Any, seed: int) -> onnx.ModelProto:
    """One quantised input times a weight of each pattern; a bias behind all but the first."""
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {"xs": STEP, "xz": zero, "ws": WEIGHT_STEP, "wz": np.int8(0)}
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
    ]
    for name, pattern in PATTERNS.items():
        arrays[f"{name}.weight"] = integer_weight(random, (shape[-1], outputs), pattern)
        nodes.append(node("DequantizeLinear", [f"{name}.weight", "ws", "wz"], [f"{name}.w"]))
        behind = name if name == "dense" else f"{name}.y"
        nodes.append(node("MatMul", ["d", f"{name}.w"], [behind], name=name))
        if name != "dense":
            steps = random.integers(-9999, 9999, outputs)
            arrays[f"{name}.b"] = (steps * STEP * WEIGHT_STEP).astype(np.float32)
            nodes.append(node("Add", [f"{name}.b", behind], [name]))
    return graph_of(nodes, arrays, shape, list(PATTERNS))


def graph_of(
    nodes: list[onnx.NodeProto], arrays: dict[str, Any], shape: tuple[int, ...], outputs: list[str]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("shape", "outputs", "zero"),
    [
        ((1, 37), 48, np.uint8(0)), ((1, 17, 53), 33, np.int8(0)),
        ((197, 1, 40), 32, np.uint8(131)), ((2, 3, 5, 44), 80, np.int8(-7)),
    ],
    ids=["1 row", "17 rows", "197 rows", "four dimensions"],
)  # fmt: skip
def test_sums_are_exact(shape: tuple[int, ...], outputs: int, zero: Any, tmp_path: Path) -> None:
    model = products(shape, outputs, zero, seed=shape[-1])
    result = nmc.compile(model, output=tmp_path / "m.nmc", target="avx512_vnni")
    kernels = {layer.name: layer.kernel for layer in result.report.layers}
    assert all("_i8_" in kernel for kernel in kernels.values()) and len(kernels) == len(PATTERNS)
    assert not result.report.other_operators and not result.report.notes
    (x,) = images(1, seed=3, shape=shape)
    found = nmc.runtime.load(tmp_path / "m.nmc").run({"x": x})
    counted = np.rint(x / STEP) + np.int32(zero)
    info = np.iinfo(type(zero))
    integers = np.clip(counted, info.min, info.max).astype(np.int64) - np.int64(zero)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, expected in zip(PATTERNS, as_defined(model, {"x": x}), strict=True):
        sums = integers @ stored[f"{name}.weight"].astype(np.int64)
        real = (sums * float(STEP * WEIGHT_STEP)).astype(np.float32)
        real = real + stored[f"{name}.b"] if f"{name}.b" in stored else real
        np.testing.assert_array_equal(found[name], real)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


IMAGE = (1, 3, 8, 8)


def vision_transformer(pattern: str = "dense") -> VisionTransformer:
    """Of one block, its matrices in a pattern."""
    torch.manual_seed(0)
    model = VisionTransformer("fused", depth=1).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = project(module.weight.detach().numpy(), parse_pattern(pattern))
            module.weight.data = torch.from_numpy(weight)
    return model


def test_a_quantised_transformer_has_its_products_on_integers(tmp_path: Path) -> None:
    """And the rest in float32: attention and norms by their kernels, GELU behind a product."""
    data = np.concatenate(images(8, shape=IMAGE))
    made = nmc.quantize(vision_transformer("2:4"), data, example_inputs=(torch.zeros(IMAGE),))
    layers = {layer.name: layer for layer in made.report.layers}
    assert {layer.precision for layer in layers.values()} == {"int8"}
    assert {layers[name].pattern for name in layers if name != "patches"} == {"2:4"}
    path = tmp_path / "m.nmc"
    result = nmc.compile(made.model, output=path, target="avx512_vnni")
    kernels = {layer.name: layer.kernel for layer in result.report.layers}
    assert all("_i8_" in kernels[name] for name in layers)
    others = result.report.other_operators or {}
    assert set(others) <= {"reshape", "permute_dims", "concat", "add", "take"}
    session = nmc.runtime.load(path)
    (x,) = images(1, shape=IMAGE)
    calls = {call.symbol.partition("_f32")[0] for call in session.profile(x, repeats=1)}
    assert "attention" in calls and "activation" not in calls
    for x in images(3, seed=5, shape=IMAGE):
        (found,), (expected,) = session.run(x).values(), as_defined(made.model, {"x": x})
        np.testing.assert_allclose(found, expected, atol=1e-5)


FORMS: dict[str, dict[str, Any]] = {
    "unsigned, per channel": {
        "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True,
    },
    "signed": {
        "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_transformer_that_is_rounded_everywhere_agrees_with_onnxruntime(
    form: str, tmp_path: Path
) -> None:
    """Biases behind a rounding, sums and GELU are on integers; attention is not, and is named."""
    model = export_onnx(vision_transformer(), torch.zeros(IMAGE))
    model = quantised(model, IMAGE, quant_format=QuantFormat.QDQ, **FORMS[form])
    result = nmc.compile(model, output=tmp_path / "m.nmc", target="avx512_vnni")
    assert all("_i8_" in layer.kernel for layer in result.report.layers)
    others = result.report.other_operators or {}
    assert not {"erf", "divide", "multiply"} & set(others)
    assert others["add"] == 1, "that of the positions alone"
    (note,) = result.report.notes
    assert note.startswith("2 products of two activations are computed in float32")
    session, step = nmc.runtime.load(tmp_path / "m.nmc"), output_step(model)
    for x in images(4, seed=5, shape=IMAGE):
        (found,), (expected,) = session.run({"x": x}).values(), as_defined(model, {"x": x})
        assert np.abs(found - expected).max() <= 2.01 * step
        assert np.mean(found == expected) >= 0.6


def rounded_block(
    shape: tuple[int, int, int], heads: int, zero: Any, *, centred: bool
) -> onnx.ModelProto:
    """x + (norm of x, rounded, times w + b); then attention of that, rounded, times w, plus x."""
    random = np.random.default_rng(shape[-1])
    batch, tokens, features = shape
    arrays: dict[str, Any] = {
        "qs": np.float32(2**-5), "qz": zero, "ws": WEIGHT_STEP, "wz": np.int8(0),
        "split": np.array([batch, tokens, heads, features // heads], np.int64),
        "joined": np.array(shape, np.int64), "scale": np.float32((features // heads) ** -0.5),
        "gain": random.uniform(0.5, 2, features).astype(np.float32),
        "shift": random.standard_normal(features, np.float32), "two": np.float32(2),
        "epsilon": np.float32(1e-5), "axes": np.array([-1], np.int64),
    }  # fmt: skip
    for name in ("first", "second"):
        arrays[f"{name}.weight"] = integer_weight(random, (features, features), "2:4")
        arrays[f"{name}.bias"] = random.standard_normal(features, np.float32)
    nodes = [node("LayerNormalization", ["x", "gain", "shift"], ["normal"], axis=-1)]
    if not centred:
        nodes = [
            node("Pow", ["x", "two"], ["square"]),
            node("ReduceMean", ["square"], ["mean"], axes=[-1]),
            node("Add", ["mean", "epsilon"], ["more"]),
            node("Sqrt", ["more"], ["root"]),
            node("Div", ["x", "root"], ["unit"]),
            node("Mul", ["unit", "gain"], ["normal"]),
        ]

    def product(name: str, value: str, added: str) -> list[onnx.NodeProto]:
        return [
            node("QuantizeLinear", [value, "qs", "qz"], [f"{name}.q"]),
            node("DequantizeLinear", [f"{name}.q", "qs", "qz"], [f"{name}.d"]),
            node("DequantizeLinear", [f"{name}.weight", "ws", "wz"], [f"{name}.w"]),
            node("MatMul", [f"{name}.d", f"{name}.w"], [f"{name}.m"], name=name),
            node("Add", [f"{name}.m", f"{name}.bias"], [f"{name}.y"]),
            node("Add", [added, f"{name}.y"], [name]),
        ]

    nodes += product("first", "normal", "x")
    nodes.append(node("Reshape", ["first", "split"], ["heads"]))
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("Transpose", ["heads"], [name], perm=order))
    nodes += [
        node("MatMul", ["q", "k"], ["scores"]),
        node("Mul", ["scores", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "joined"], ["whole"]),
        *product("second", "whole", "x"),
    ]
    return graph_of(nodes, arrays, shape, ["first.q", "first", "second.q", "second"])


@pytest.mark.parametrize(
    ("shape", "heads", "zero", "centred"),
    [
        ((1, 7, 20), 1, np.uint8(128), True), ((2, 33, 96), 3, np.int8(0), False),
        ((1, 70, 144), 4, np.int8(-9), True),
    ],
    ids=["7 tokens", "RMS norm", "70 tokens"],
)  # fmt: skip
def test_norms_and_attention_write_bytes_and_products_add_real_numbers(
    shape: tuple[int, int, int], heads: int, zero: Any, centred: bool, tmp_path: Path
) -> None:
    model = rounded_block(shape, heads, zero, centred=centred)
    for name in ("first.q", "second.q"):
        output = next(value for value in model.graph.output if value.name == name)
        kind = TensorProto.UINT8 if isinstance(zero, np.uint8) else TensorProto.INT8
        output.type.tensor_type.elem_type = kind
    result = nmc.compile(model, output=tmp_path / "m.nmc", target="avx512_vnni")
    assert not {"add", "quantize"} & set(result.report.other_operators or {})
    session = nmc.runtime.load(tmp_path / "m.nmc")
    (x,) = images(1, seed=3, shape=shape)
    symbols = [call.symbol.partition("__")[0] for call in session.profile({"x": x}, repeats=1)]
    assert {"layer_norm_f32_i8", "attention_f32_i8"} <= set(symbols)
    assert "quantise_f32_i8" not in symbols
    found = session.run({"x": x})
    wanted = dict(zip(found, as_defined(model, {"x": x}), strict=True))
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("first", "second"):
        bytes_, expected = (each[f"{name}.q"].astype(np.int64) for each in (found, wanted))
        if name == "first":
            assert np.abs(bytes_ - expected).max() <= 1
            assert np.mean(bytes_ == expected) > 0.99
        sums = (bytes_ - np.int64(zero)) @ stored[f"{name}.weight"].astype(np.int64)
        unit = 2**-5 * WEIGHT_STEP
        biased = sums + np.rint(stored[f"{name}.bias"] / unit)
        np.testing.assert_array_equal(found[name], (biased * unit).astype(np.float32) + x)
    # What the second part reads is ours, not onnxruntime's.
    q = found["first"].reshape(*shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float64)
    scores = q @ q.swapaxes(-1, -2) * (shape[-1] // heads) ** -0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ q
    whole = mixed.transpose(0, 2, 1, 3).reshape(shape)
    info = np.iinfo(type(zero))
    expected = np.clip(np.rint(whole / 2**-5) + np.int64(zero), info.min, info.max)
    assert np.abs(found["second.q"] - expected).max() <= 1
    assert np.mean(found["second.q"] == expected) > 0.99


def test_what_a_norm_makes_of_nan_is_the_lowest_byte(tmp_path: Path) -> None:
    shape = (1, 5, 20)
    model = rounded_block(shape, 1, np.uint8(100), centred=True)
    for output in model.graph.output:
        if output.name.endswith(".q"):
            output.type.tensor_type.elem_type = TensorProto.UINT8
    nmc.compile(model, output=tmp_path / "m.nmc", target="avx512_vnni")
    (x,) = images(1, shape=shape)
    x[0, 2, 3] = np.nan
    found = nmc.runtime.load(tmp_path / "m.nmc").run({"x": x})
    expected = dict(zip(found, as_defined(model, {"x": x}), strict=True))
    assert (found["first.q"][0, 2] == 0).all()
    np.testing.assert_array_equal(np.isnan(found["second"]), np.isnan(expected["second"]))
