"""A small network with all that quantisers treat in ways of their own, and what they make of it."""

import functools
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from torch import Tensor, nn
from torch.nn import functional
from tvm import relax

import nmcompile as nmc
from nmcompile.passes.lowering.view import operator_name
from nmcompile.runtime import cpu
from nmcompile.targets import TARGETS
from tests.support.peer import by_peer
from tests.support.seed_modules import Array, export_onnx

SHAPE = (1, 3, 12, 12)


class MixedNet(nn.Module):
    """Convolutions, a depthwise one, hard-swish, a residual sum, concat, pools, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, 1, 1)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.narrow(functional.hardswish(self.depth(torch.relu(self.wide(x)))))
        x = torch.cat([torch.relu(x + y), y], 1)
        x = functional.adaptive_avg_pool2d(self.pool(x), 1)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def mixed_net() -> MixedNet:
    torch.manual_seed(0)
    return MixedNet().eval()


@functools.cache
def mixed_onnx() -> onnx.ModelProto:
    return export_onnx(mixed_net(), torch.zeros(SHAPE))


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for _ in range(count)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: tuple[int, ...]) -> None:
        made = images(4, shape=shape)
        self._left: Iterator[Mapping[str, Array]] = iter([{"x": image} for image in made])

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._left, None)


def quantised_onnx(**options: Any) -> onnx.ModelProto:
    """`mixed_onnx` as onnxruntime quantises it."""
    return quantised(mixed_onnx(), SHAPE, **options)


def quantised(
    model: onnx.ModelProto, shape: tuple[int, ...], *, dynamic: bool = False, **options: Any
) -> onnx.ModelProto:
    """A model of one input x as onnxruntime quantises it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        if dynamic:
            quantize_dynamic(before, after, **options)
        else:
            quantize_static(before, after, _Reader(shape), **options)
        return onnx.load(after)


exact_peer = pytest.mark.isa("avx512_vnni", native=True)
"""For tests whose models have operators on integers: without VNNI onnxruntime's sums saturate."""


def as_defined(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs, each operator by itself as onnxruntime defines it."""
    return by_peer(model, feeds, as_defined=True)


def compiled(model: Any, folder: Path, **options: Any) -> Any:
    """A session of the compiled model."""
    path = folder / "m.nmc"
    nmc.compile(model, output=path, **options)
    return nmc.runtime.load(path)


def targets_here() -> list[str]:
    """The CPU targets whose artifacts run on this machine."""
    _, flags = cpu.host()
    return [t.name for t in TARGETS if not t.arch and flags.issuperset(t.cpu_features)]


def output_step(model: onnx.ModelProto) -> float:
    """The step of the dequantisation that makes the first output; 0 if none does."""
    name = model.graph.output[0].name
    makers = [node for node in model.graph.node if name in node.output]
    if makers[0].op_type != "DequantizeLinear":
        return 0.0
    found = [i for i in model.graph.initializer if i.name == makers[0].input[1]]
    return float(numpy_helper.to_array(found[0]).max())


def weight_dtypes(module: Any) -> list[str]:
    """What the weights of convolutions and matrix products are stored as in Relax, in order."""
    definitions = {
        binding.var: binding.value for block in module["main"].body.blocks
        for binding in block.bindings
    }  # fmt: skip
    found = []
    for value in definitions.values():
        if isinstance(value, relax.Call) and operator_name(value) in ("nn.conv2d", "matmul"):
            source = value.args[1]
            while isinstance(source, (relax.Var, relax.Call)):
                source = definitions[source] if isinstance(source, relax.Var) else source.args[0]
            found.append(str(source.ty.dtype))
    return found
