"""Models whose filters are zero throughout, from the model to the artifact, and in integers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import nmcompile as nmc
from nmcompile.errors import ShapeError
from nmcompile.folding import open_folded
from nmcompile.passes.pipeline import check_graph
from nmcompile.passes.remove_zero_channels import RemoveZeroChannels
from tests.support.quantised import quantised
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def pruned(seed: int = 0, dead: tuple[int, ...] = (1, 4, 6)) -> nn.Sequential:
    """Three layers; of the first two, which have 8 filters each, some are zero."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    with torch.no_grad():
        for layer, bias in ((layers[0], -1.0), (layers[2], 0.5)):
            layer.weight[list(dead)] = 0  # type: ignore[operator]
            layer.bias[list(dead)] = bias  # type: ignore[operator]
    return model


def proto(**options: Any) -> onnx.ModelProto:
    return export_onnx(pruned(**options), X)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_artifacts_compute_what_the_whole_model_does(kind: str, tmp_path: Path) -> None:
    model: Any = pruned() if kind == "torch" else proto()
    example = (X,) if kind == "torch" else None
    result = nmc.compile(model, output=tmp_path / "m.nmc", example_inputs=example)
    rows = result.report.layers
    assert [row.shape[:2] for row in rows] == [(5, 3), (5, 5), (5, 180)]
    assert [row.model_shape[:2] for row in rows] == [(8, 3), (8, 8), (5, 288)]
    assert sum("8 -> 5 filters" in note for note in result.report.notes) == 2
    session = nmc.runtime.load(tmp_path / "m.nmc")
    (found,) = session.run({session.inputs[0].name: X.numpy()}).values()
    assert_close(found, run_torch(pruned(), X))
    looked = nmc.inspect(model, example_inputs=example)
    assert [row.model_shape for row in looked.layers] == [row.model_shape for row in rows]
    assert set(looked.notes) >= {note for note in result.report.notes if "filters" in note}


def test_dense_keeps_all_filters(tmp_path: Path) -> None:
    result = nmc.compile(proto(), output=tmp_path / "m.nmc", pattern="dense")
    looked = nmc.inspect(proto(), pattern="dense")
    for report in (result.report, looked):
        assert [row.shape[0] for row in report.layers] == [8, 8, 5]
        assert not any(row.model_shape for row in report.layers)
    updated = nmc.update(tmp_path / "m.nmc", proto(), output=tmp_path / "n.nmc")
    assert updated.digest == result.digest


def test_a_pattern_that_is_named_is_that_of_the_whole_model(tmp_path: Path) -> None:
    half = proto(dead=(0, 1, 4, 5))
    result = nmc.compile(half, output=tmp_path / "m.nmc", pattern="unstructured@0.5")
    assert [row.shape[0] for row in result.report.layers] == [4, 4, 5]
    looked = nmc.inspect(half, pattern="unstructured@0.5")
    assert [row.violations for row in looked.layers[:2]] == [0, 0]


def test_other_weights_fit_where_as_many_filters_are_zero(tmp_path: Path) -> None:
    old, other = tmp_path / "old.nmc", proto(seed=1, dead=(0, 2, 3))
    nmc.compile(proto(), output=old)
    found = nmc.update(old, other, output=tmp_path / "found.nmc")
    wanted = nmc.compile(other, output=tmp_path / "wanted.nmc")
    assert found.digest == wanted.digest
    with pytest.raises(ShapeError, match=r"layer .*: expected a weight of shape \(5, 3, 3, 3\)"):
        nmc.update(old, proto(seed=1, dead=(0, 2)), output=tmp_path / "none.nmc")
    whole = tmp_path / "whole.nmc"
    nmc.compile(proto(dead=()), output=whole)
    kept = nmc.update(whole, other, output=tmp_path / "kept.nmc")
    assert [row.shape[0] for row in kept.report.layers] == [8, 8, 5]


def test_folded_and_quantised_models_are_smaller_too() -> None:
    folded = nmc.fold(proto())
    assert [layer.weight.shape[0] for layer in open_folded(folded)[0].graph.layers()] == [5, 5, 5]
    assert_close(run_onnx(folded, X), run_torch(pruned(), X))
    data = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    done = nmc.quantize(proto(), data)
    layers = open_folded(done.model, smaller=False)[0].graph.layers()
    assert [layer.weight.shape[0] for layer in layers] == [5, 5, 5]


def test_quantised_graphs_lose_filters_in_integers() -> None:
    model = quantised(export_onnx(_of_zeros(), X), tuple(X.shape), per_channel=True)
    source = open_folded(model, smaller=False)[0]
    expected = run_onnx(source.native(), X)
    RemoveZeroChannels().call(source.graph)
    check_graph(source.graph)
    layers = source.graph.layers()
    assert [len(layer.weight) for layer in layers] == [5, 5, 5]
    assert all(layer.integers is not None for layer in layers)
    np.testing.assert_array_equal(run_onnx(source.native(), X), expected)


def _of_zeros() -> nn.Module:
    """The second layer's biases are no numbers that others would have to add."""
    model = pruned()
    with torch.no_grad():
        model[2].bias[[1, 4, 6]] = 0  # type: ignore[operator]
    return model
