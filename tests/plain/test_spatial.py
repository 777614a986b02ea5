"""Densities per kernel position, from torch and from ONNX."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nmcompile.cli import app
from nmcompile.spatial import SpatialLayer, spatial_report
from nmcompile.train import SRSTE, SpRe
from tests.support.seed_modules import export_onnx, randomised

X = torch.zeros(1, 3, 8, 8)


def network() -> nn.Sequential:
    """A stem, a 3x3 whose middle row is heavy, and a 1x1."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 1),
    )
    heavy = model[1]
    assert isinstance(heavy, nn.Conv2d)
    with torch.no_grad():
        heavy.weight[:, :, 1] *= 4
    return randomised(model)


def report(model: nn.Module, kind: str, **options: Any) -> dict[str, SpatialLayer]:
    source: Any = model.eval() if kind == "torch" else export_onnx(model.eval(), X)
    inputs = (X,) if kind == "torch" else None
    return {row.name: row for row in spatial_report(source, example_inputs=inputs, **options)}


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_masked_model_shows_what_unstructured_pruning_would_leave(kind: str) -> None:
    model = network()
    dense = model[1].weight.detach().abs().numpy()  # type: ignore[operator]
    SRSTE("2:4").prepare(model)
    rows = report(model, kind)
    assert next(iter(rows)).startswith("0") and len(rows) == 2  # the 1x1 has no positions
    stem, row = rows.values()
    assert stem.density == 1.0 and stem.unstructured is None
    np.testing.assert_array_equal(row.main, np.full((3, 3), 0.5))
    kept = dense > np.partition(dense.ravel(), dense.size // 2 - 1)[dense.size // 2 - 1]
    assert row.unstructured is not None
    np.testing.assert_allclose(row.unstructured, kept.mean((0, 1)), atol=1e-9)
    assert row.unstructured[1].min() > 0.7 > 0.5 > row.unstructured[0].max()


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_folded_branches_keep_the_densities_of_the_pattern(kind: str) -> None:
    model = SpRe("1:4").prepare(network())
    rows = report(model, kind)
    assert len(rows) == 2
    row = list(rows.values())[1]
    np.testing.assert_array_equal(row.main, np.full((3, 3), 0.25))
    assert row.folded is not None
    np.testing.assert_array_equal(row.folded, row.main)
    assert row.unstructured is not None and np.ptp(row.unstructured) > 0.3


def test_pattern_shows_what_it_would_leave_of_a_dense_model() -> None:
    row = report(network(), "torch", pattern="1:4")["1"]
    np.testing.assert_array_equal(row.main, np.full((3, 3), 0.25))
    assert row.folded is None
    assert row.unstructured is not None and row.unstructured.mean() == pytest.approx(0.25, abs=1e-3)
    assert report(network(), "torch")["1"].unstructured is None


def test_command_prints_and_draws(tmp_path: Path) -> None:
    model, plot = tmp_path / "m.onnx", tmp_path / "spatial.png"
    onnx.save(export_onnx(SpRe("2:4").prepare(network()).eval(), X), model)
    done = CliRunner().invoke(app, ["inspect", str(model), "--spatial", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert "0.50 0.50 0.50" in done.output and "after folding" in done.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(app, ["inspect", str(model), "--spatial", "--json"])
    layers = json.loads(done.stdout)["layers"]
    assert [len(layer["main"]) for layer in layers] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "x.png"], "expected --spatial"),
        (["--spatial", "--pattern", "3:2"], "expected N:M with 1 <= N <= M"),
    ],
)
def test_wrong_use_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(export_onnx(network(), X), model)
    done = CliRunner().invoke(app, ["inspect", str(model), *arguments])
    assert done.exit_code in (1, 2)
    assert message in done.output + str(done.stderr)
