"""Batches: compiled for, run, and every image of one computed as alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

import nmcompile
from nmcompile import runtime
from nmcompile.sparsity import parse_pattern, project
from tests.support.examples import crossed
from tests.support.kernel_runner import relative_error


def sparse_model(pattern: str, density: float | None) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 16, 3, 2, 1),
        torch.nn.Conv2d(16, 32, 1),
        torch.nn.Conv2d(32, 32, 3, padding=1, groups=32),
        torch.nn.Conv2d(32, 32, 3, padding=1),
    ]
    with torch.no_grad():
        for layer in (layers[1], layers[3]):
            weight = np.asarray(layer.weight.detach())
            layer.weight.copy_(torch.from_numpy(project(weight, parse_pattern(pattern), density)))
    tail = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10))
    return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.MaxPool2d(2), *tail).eval()


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize(("batch", "pattern"), crossed([7, 64], ["2:4", "1x8"]))
def test_batches_agree_with_torch(tmp_path: Path, batch: int, pattern: str) -> None:
    model = sparse_model(pattern, 0.5 if pattern == "1x8" else None)
    x = torch.randn(batch, 3, 18, 18, generator=torch.Generator().manual_seed(1))
    nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=(x,))
    with torch.no_grad():
        expected = model(x).numpy()
    with runtime.load(tmp_path / "m.nmc") as session:
        found = next(iter(session.run(x.numpy()).values()))
    assert found.shape == (batch, 10)
    assert relative_error(found, expected) < 1e-5
