"""Several shapes of a model in int8 and bfloat16: as defined for each, one copy of the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import nmcompile
import nmcompile.precision
from nmcompile import runtime
from nmcompile.quantization.quantize import quantize_sets
from nmcompile.runtime.format import read_artifact
from nmcompile.sparsity import parse_pattern, project
from tests.support.quantised import as_defined, quantised
from tests.support.seed_modules import Array, export_onnx, randomised

SHAPES = [{"x": (1, 4, 6, 6)}, {"x": (3, 4, 6, 6)}]


class Tiny(nn.Module):
    """A window that is pruned, a residual sum and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(16, 8)
        self.point = nn.Conv2d(16, 16, 1)
        randomised(self)
        kept = project(self.conv.weight.detach().numpy(), parse_pattern("2:4"))
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(kept))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        out: Tensor = self.head(torch.relu(self.point(y) + y).mean((2, 3)))
        return out


def images(count: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, 4, 6, 6)).astype(np.float32)


def check(model: Any, folder: Path, protos: Sequence[onnx.ModelProto], **options: Any) -> None:
    """Compile for all shapes, and hold every batch and the size against those of one each."""
    done = nmcompile.compile(model, output=folder / "m.nmc", shapes=SHAPES, **options)
    one = nmcompile.compile(model, output=folder / "one.nmc", shapes=SHAPES[0], **options)
    several, single = (
        sum(spec.nbytes for spec in read_artifact(each.path).manifest.params)
        for each in (done, one)
    )
    assert several <= 1.02 * single
    session = runtime.load(done.path, threads=1)
    kind = "_i8_" if options["target"] == "avx512_vnni" else "_bf16_"
    assert all(kind in row["kernel"] for row in session.manifest.layers)
    for batch, parts in ((1, protos[:1]), (3, protos[1:]), (4, protos[::-1])):
        (found,) = session.run(images(batch)).values()
        wanted = in_parts(parts, images(batch))
        assert np.abs(found - wanted).max() < 0.01 * np.ptp(wanted)


@pytest.mark.isa("avx512_vnni")
def test_a_float_model_is_quantised_once_and_compiled_for_each_shape(tmp_path: Path) -> None:
    model = Tiny().eval()
    protos, _ = quantize_sets(model, images(16), SHAPES)
    options = {"target": "avx512_vnni", "precision": "int8", "calibration": images(16)}
    check(model, tmp_path, protos, **options)


@pytest.mark.isa("avx512_vnni")
def test_a_quantised_file_is_compiled_for_each_shape(tmp_path: Path) -> None:
    proto = export_onnx(Tiny().eval(), torch.zeros(2, 4, 6, 6))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    model = quantised(proto, (2, 4, 6, 6), per_channel=True)
    check(model, tmp_path, [at_batch(model, n) for n in (1, 3)], target="avx512_vnni")


@pytest.mark.isa("avx512_bf16")
def test_bfloat16_is_compiled_for_each_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nmcompile.precision, "PAYS", 0.0)
    model = Tiny().eval()
    protos = [export_onnx(model, torch.zeros(*shapes["x"])) for shapes in SHAPES]
    check(model, tmp_path, protos, target="avx512_bf16", precision="bf16")


def at_batch(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    copied.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    return copied


def in_parts(protos: Sequence[onnx.ModelProto], x: Array) -> Array:
    """What models of several batches make of a batch, one after the other."""
    made, start = [], 0
    for proto in protos:
        stop = start + proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        made += as_defined(proto, {"x": x[start:stop]})
        start = stop
    return np.concatenate(made)
