"""A model pruned by 1xN after its filters were rearranged keeps its pattern from file to kernel."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from nmcompile import compile, enforce, inspect, runtime
from nmcompile.sparsity import OneByN, Pruning, project


def rearranged_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 64, 1), nn.ReLU6(), nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96)
    ).eval()
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Conv2d)
        weight = project(layer.weight.detach().numpy(), OneByN(16), 0.5)
        order = torch.randperm(len(weight))
        layer.weight.data = torch.from_numpy(weight)[order]
    return model


def test_scattered_blocks_pass_and_run_as_1xn(tmp_path: Path) -> None:
    model, x = rearranged_model(), torch.randn(1, 16, 14, 14)
    result = compile(model, output=tmp_path / "m.nmc", example_inputs=(x,), pattern="1x16")
    assert [layer.pattern for layer in result.report.layers] == ["1x16", "1x16"]
    assert all(layer.sparse and layer.scattered for layer in result.report.layers)
    assert sum("scattered over the layer" in note for note in result.report.notes) == 2
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        (found,) = session.run(x).values()
        assert [layer["pattern"] for layer in session.manifest.layers] == ["1x16", "1x16"]
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_inspect_and_enforce_see_scattered_blocks() -> None:
    model, x = rearranged_model(), torch.randn(1, 16, 14, 14)
    report = inspect(model, example_inputs=(x,), pattern="1x16")
    assert [(layer.pattern, layer.violations) for layer in report.layers] == [("1x16", 0)] * 2
    enforced = enforce(model, "1x16", pruning=Pruning(density=0.5), example_inputs=(x,))
    with torch.no_grad():
        assert torch.allclose(enforced(x), model(x), atol=1e-5)
