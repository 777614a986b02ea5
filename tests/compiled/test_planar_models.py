"""Models with transposed and one-dimensional convolutions run on our kernels, sparse ones too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nmcompile
from nmcompile.folding import open_folded
from nmcompile.passes.enforce_pattern import EnforceResult
from nmcompile.sparsity import parse_pattern, project
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch

TURNED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TURNED)


class UNet(nn.Module):
    """Two levels, with both usual ways up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, 2, 1)
        self.deep = nn.Conv2d(32, 64, 3, 2, 1)
        self.up4 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.mid = nn.Conv2d(64, 32, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, 2)
        self.last = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x).relu()
        second = self.down(first).relu()
        up = self.up4(self.deep(second).relu()).relu()
        third = self.mid(torch.cat([up, second], 1)).relu()
        y: torch.Tensor = self.last(torch.cat([self.up2(third), first], 1))
        return y


def signal_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(8, 32, 9, 2, 4), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 3, padding=2, dilation=2), nn.ReLU(),
        nn.ConvTranspose1d(32, 16, 3, 2, 1, 1), nn.ReLU(), nn.Conv1d(16, 4, 1),
    )  # fmt: skip


def volume_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 32, (3, 3, 3), 2, 1), nn.ReLU(),
        nn.Conv3d(32, 32, (3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1)), nn.ReLU(),
        nn.Conv3d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.ConvTranspose3d(32, 16, 2, 2), nn.ReLU(), nn.MaxPool3d(3, 2, 1),
        nn.ConvTranspose3d(16, 16, 3, 2, 1, 1), nn.ReLU(), nn.Conv3d(16, 4, 1),
    )  # fmt: skip


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "images": (UNet, (1, 3, 24, 20)),
    "signals": (signal_net, (1, 8, 96)),
    "volumes": (volume_net, (1, 3, 6, 12, 10)),
}


ENFORCED = {"images": {"up4", "up2"}, "signals": {"4", "6"}, "volumes": {"3", "5", "9", "12"}}


def pruned(model: nn.Module, pattern: str) -> nn.Module:
    """Every wide convolution, along the channels that it computes with."""
    for layer in model.modules():
        if not isinstance(layer, CONVS) or not is_wide(layer):
            continue
        weight = layer.weight.detach().numpy()
        turned = isinstance(layer, TURNED)
        weight = np.ascontiguousarray(weight.swapaxes(0, 1) if turned else weight)
        kept = project(weight, parse_pattern(pattern), 0.5 if "x" in pattern else None)
        kept = np.ascontiguousarray(kept.swapaxes(0, 1) if turned else kept)
        layer.weight.data = torch.from_numpy(kept)
    return model


def is_wide(layer: Any) -> bool:
    """Of at least 16 channels, and not in groups."""
    return bool(min(layer.in_channels, layer.out_channels) >= 16 and layer.groups == 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("through", ["torch", "onnx"])
def test_patterns_are_enforced_on_them(name: str, through: str, tmp_path: Path) -> None:
    build, shape = MODELS[name]
    model, x = build().eval(), torch.randn(shape)
    given: Any = export_onnx(model, x) if through == "onnx" else model
    example = (x,) if through == "torch" else None
    rows: list[EnforceResult] = []
    sparse = nmcompile.enforce(given, "2:4", example_inputs=example, report=rows.append)
    seen = {row.name: row for row in nmcompile.inspect(sparse, example_inputs=example).layers}
    enforced = [row for row in rows[0].layers if row.skipped is None]
    assert {row.layer for row in enforced} >= ENFORCED[name]
    for row in enforced:
        assert seen[row.layer].pattern == "2:4" and 0 < row.energy_dropped < 1, row
        assert seen[row.layer].sparse or seen[row.layer].shape[0] < 16, row
    old, new = weights(given, example), weights(sparse, example)
    assert set(old) == set(new)
    for path, weight in new.items():
        assert np.array_equal(weight, np.where(weight == 0, 0, old[path])), path
    # The framework still runs it, with the outputs that ours has.
    path_of = tmp_path / "m.nmc"
    nmcompile.compile(sparse, output=path_of, example_inputs=example)
    session = nmcompile.runtime.load(path_of, threads=1)
    (found,) = session.run({session.inputs[0].name: x.numpy()}).values()
    assert_close(found, run_onnx(sparse, x) if through == "onnx" else run_torch(sparse, x))


def weights(model: Any, example: Any) -> dict[str, Any]:
    """By name, of whatever has one; batch norms are folded."""
    graph = open_folded(model, example)[0].graph
    known = {layer.name: layer.weight for layer in graph.layers()}
    return known | {other.name: other.weight for other in graph.weighted()}


@pytest.mark.parametrize("pattern", ["dense", "2:4", "1x16"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("through", ["torch", "onnx"])
def test_models_run_on_kernels(name: str, pattern: str, through: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build().eval(), torch.randn(shape)
    if pattern != "dense":
        pruned(model, pattern)
    given: Any = export_onnx(model, x) if through == "onnx" else model
    example = (x,) if through == "torch" else None
    path = tmp_path / "m.nmc"
    result = nmcompile.compile(given, output=path, example_inputs=example)
    session = nmcompile.runtime.load(path, threads=1)
    (found,) = session.run({session.inputs[0].name: x.numpy()}).values()
    with torch.no_grad():
        assert_close(found, model(x).numpy())
    rows = {row.name: row for row in result.report.layers}
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, CONVS)}
    assert set(rows) == set(layers) and not result.report.segments
    assert all(row.kernel.startswith("conv2d_f32") for row in rows.values())
    seen = {row.name: row for row in nmcompile.inspect(given, example_inputs=example).layers}
    assert set(seen) == set(layers)
    for path_of, layer in layers.items():
        assert seen[path_of].kernel == rows[path_of].kernel
        if is_wide(layer) and pattern != "dense":
            assert rows[path_of].pattern == pattern, rows[path_of]
            assert rows[path_of].sparse, rows[path_of]
