"""Networks on integers: which operators have a kernel for them, and onnxruntime's results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType
from torch import Tensor, nn
from torch.nn import functional

import nmcompile as nmc
from tests.support.examples import crossed
from tests.support.quantised import as_defined, images, quantised
from tests.support.seed_modules import Array, export_onnx

pytestmark = pytest.mark.isa("avx512_vnni")
Layers = dict[str, nn.Module]
Forward = Callable[[Any, Tensor], Tensor]

UNSIGNED: dict[str, Any] = {
    "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True,
}  # fmt: skip
SIGNED: dict[str, Any] = {
    "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8,
    "extra_options": {"ActivationSymmetric": True},
}  # fmt: skip


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, layers: Layers, forward: Forward) -> None:
        super().__init__()
        self.layers, self._forward = nn.ModuleDict(layers), forward

    def __getattr__(self, name: str) -> Any:
        layers = self.__dict__["_modules"]["layers"]
        return layers[name] if name in layers else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._forward(self, x)
        return result


def squeeze_excite(net: Net, x: Tensor) -> Tensor:
    y = functional.hardswish(net.deep(functional.hardswish(net.wide(x))))
    gate = net.out(functional.relu(net.into(functional.adaptive_avg_pool2d(y, 1))))
    added: Tensor = net.narrow(y * functional.hardsigmoid(gate))
    return x + added


def inception(net: Net, x: Tensor) -> Tensor:
    tall = functional.relu(net.tall(functional.relu(net.flat(x))))
    pooled = net.pooled(functional.avg_pool2d(x, 3, 1, 1))
    parts = [functional.relu(net.one(x)), tall, pooled, functional.max_pool2d(x, 3, 1, 1)]
    joined: Tensor = net.last(torch.cat(parts, 1))
    return joined


def grouped(net: Net, x: Tensor) -> Tensor:
    x = functional.relu6(net.large(functional.silu(net.dilated(x))))
    logits: Tensor = net.head(torch.flatten(torch.sigmoid(net.halves(x)), 1)[:, :768])
    return logits


def shuffle(net: Net, x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    right = functional.relu(net.deep(functional.leaky_relu(net.one(right), 0.1)))
    n, c, h, w = x.shape
    mixed = torch.cat([left, right], 1).view(n, 2, c // 2, h, w).transpose(1, 2)
    up: Tensor = functional.interpolate(net.last(mixed.reshape(n, c, h, w)), scale_factor=2)
    return up


NETS: dict[str, tuple[Layers, Forward, tuple[int, ...], set[str]]] = {
    "squeeze and excite": (
        {
            "wide": nn.Conv2d(16, 32, 1), "deep": nn.Conv2d(32, 32, 5, 1, 2, groups=32),
            "into": nn.Conv2d(32, 8, 1), "out": nn.Conv2d(8, 32, 1), "narrow": nn.Conv2d(32, 16, 1),
        },
        squeeze_excite, (1, 16, 14, 14), set(),
    ),
    "inception": (
        {
            "one": nn.Conv2d(16, 24, 1), "flat": nn.Conv2d(16, 20, (1, 7), padding=(0, 3)),
            "tall": nn.Conv2d(20, 20, (7, 1), padding=(3, 0)), "pooled": nn.Conv2d(16, 8, 1),
            "last": nn.Conv2d(68, 32, 3, 2),
        },
        inception, (2, 16, 13, 13), set(),
    ),
    "grouped": (
        {
            "dilated": nn.Conv2d(32, 64, 3, padding=(2, 1), dilation=(2, 1), groups=8),
            "large": nn.Conv2d(64, 48, 5, 3, (1, 2)),
            "halves": nn.Conv2d(48, 48, 3, 1, 1, groups=2), "head": nn.Linear(768, 17),
        },
        grouped, (1, 32, 15, 11), set(),
    ),
    "shuffle": (
        {
            "one": nn.Conv2d(16, 16, 1), "deep": nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            "last": nn.Conv2d(32, 12, 1),
        },
        # Halves of the channels, and the resize, move integers: they have no kernel of ours.
        shuffle, (1, 32, 8, 8), {"strided_slice", "image.resize2d"},
    ),
}  # fmt: skip


ON_VECTORS, ON_TILES = "avx512_vnni", pytest.param("avx512_amx", marks=pytest.mark.isa("amx_int8"))


FORMS = {"unsigned": UNSIGNED, "signed": SIGNED}


@pytest.mark.parametrize("target", [ON_VECTORS, ON_TILES])
@pytest.mark.parametrize(("name", "form"), crossed(list(NETS), list(FORMS)))
def test_networks_agree_with_onnxruntime(name: str, form: str, target: str, tmp_path: Path) -> None:
    layers, forward, shape, others = NETS[name]
    torch.manual_seed(0)
    model = export_onnx(Net(layers, forward).eval(), torch.zeros(shape))
    model = quantised(model, shape, quant_format=QuantFormat.QDQ, **FORMS[form])
    path = tmp_path / "m.nmc"
    result = nmc.compile(model, output=path, target=target)
    conversions = {"quantize", "dequantize"}
    assert set(result.report.other_operators or {}) <= others | conversions
    assert all("_i8_" in layer.kernel for layer in result.report.layers)
    session = nmc.runtime.load(path)
    for x in images(2, seed=5, shape=shape):
        (found,), (expected,) = session.run({"x": x}).values(), as_defined(model, {"x": x})
        assert_few_steps(found, expected)


def assert_few_steps(found: Array, expected: Array) -> None:
    """Few values differ, and those by a step or two of the output's rounding."""
    step = np.diff(np.unique(expected)).min()
    assert float(np.abs(found - expected).max()) <= 2.01 * step
    assert float((np.abs(found - expected) < 0.1 * step).mean()) >= 0.9


def tiny(**options: Any) -> Any:
    """A convolution and a classifier, quantised."""
    torch.manual_seed(0)
    layers = {"stem": nn.Conv2d(3, 16, 3), "head": nn.Linear(16, 5)}

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(functional.adaptive_avg_pool2d(net.stem(x), 1).flatten(1))  # type: ignore[no-any-return]

    model = export_onnx(Net(layers, forward).eval(), torch.zeros(1, 3, 8, 8))
    return quantised(model, (1, 3, 8, 8), quant_format=QuantFormat.QDQ, **UNSIGNED, **options)


def test_layers_that_stay_float_are_named_with_what_to_change() -> None:
    model = tiny(op_types_to_quantize=["Conv"])
    report = nmc.inspect(model, target="avx512_vnni")
    kernels = {layer.name: layer.kernel for layer in report.layers}
    assert "_i8_" in kernels["layers.stem"] and "_f32_" in kernels["layers.head"]
    (note,) = report.notes
    assert note.startswith("layers.head: is computed in float32: its input is not rounded")
    assert "QuantizeLinear" in note


def test_other_targets_say_who_runs_integers() -> None:
    (note,) = nmc.inspect(tiny()).notes
    assert "2 layers are quantised" in note and "target='avx512_vnni'" in note


def test_float_models_compile_for_it_as_for_avx512(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    path = tmp_path / "m.nmc"
    result = nmc.compile(model, output=path, target="avx512_vnni", example_inputs=(x,))
    assert result.report.layers[0].kernel.endswith("__avx512") and not result.report.notes
    (found,) = nmc.runtime.load(path).run(x).values()
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


def test_integer_layers_are_tuned(tmp_path: Path) -> None:
    database = tmp_path / "tuning.json"
    options: dict[str, Any] = {"target": "avx512_vnni", "output": tmp_path / "m.nmc"}
    tuning = nmc.Tuning(database=database, measure=True)
    result = nmc.compile(tiny(), tuning=tuning, **options)
    assert {layer.layer for layer in result.tuning} == {"layers.stem", "layers.head"}
    again = nmc.compile(tiny(), tuning=nmc.Tuning(database=database), **options)
    assert again.tuning == result.tuning


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_function_without_a_value_is_the_lowest_integer(dtype: Any, tmp_path: Path) -> None:
    """As onnxruntime rounds NaN: here of square roots of negative numbers."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        node("Sqrt", ["d"], ["r"]),
        node("QuantizeLinear", ["r", "ys", "yz"], ["p"]),
        node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    arrays = {"xs": np.float32(0.1), "xz": dtype(9), "ys": np.float32(0.02), "yz": dtype(20)}
    image = [1, 4, 4, 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "m.nmc"
    nmc.compile(model, output=path, target="avx512_vnni")
    (x,) = images(1, shape=(1, 4, 4, 4))
    (found,) = nmc.runtime.load(path).run({"x": x}).values()
    np.testing.assert_array_equal(found, as_defined(model, {"x": x})[0])
