"""Batches whose early part runs image by image: the same results, layers and weights."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile import runtime
from nmcompile.bench.profile import layer_rows
from nmcompile.bench.results import Roofs
from nmcompile.passes.lowering.batch import cost
from nmcompile.runtime.format import read_artifact
from tests.support.kernel_runner import relative_error
from tests.support.seed_modules import export_onnx

pytestmark = pytest.mark.isa("avx512f")


@pytest.fixture(autouse=True)
def tiny_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small images leave the caches, on any machine, and let only that count."""
    monkeypatch.setattr(cost, "cores", lambda: 1)
    for name in ("L2_BYTES", "L3_BYTES"):
        monkeypatch.setattr(cost, name, 20_000)
    monkeypatch.setattr(cost, "WEIGHTS", math.inf)
    monkeypatch.setattr(cost, "CALL", 0.0)


class Residual(nn.Module):
    """Two blocks relu(conv(conv(x)) + x), then a head that mixes pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.second = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        self.head = nn.Linear(16 * 81, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool2d(functional.relu6(self.stem(x)), 2)
        for first, second in zip(self.first, self.second, strict=True):
            y = functional.relu(second(first(y)) + y)
        out: Tensor = self.head(y.flatten(1))
        return out


class Branches(nn.Module):
    """Branches that meet along the channels, one value of which is returned as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.right, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.silu(self.stem(x))
        both = torch.cat([self.left(y), torch.tanh(self.right(y))], 1)
        return functional.avg_pool2d(both, 3), self.last(both).mean((2, 3))


class ReturnsEarly(nn.Module):
    """The stem's value is an output, so nothing behind the stem runs image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.stem(x))
        return y, self.last(y)


class Mixes(nn.Module):
    """What comes behind the stem compares the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.stem(x))
        out: Tensor = self.last(y - y.mean(0, keepdim=True))
        return out


class PerImageConstant(nn.Module):
    """A constant of one value per image is added: its images are not alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.register_buffer("shift", torch.arange(8.0).reshape(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.stem(x) + self.shift)
        return out


class Inputs(nn.Module):
    """Two inputs with a batch, joined early, and one that all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(5, 16, 1)
        self.middle, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        both = self.middle(functional.relu(self.left(x) + self.right(y)))
        out: Tensor = self.last(both * scale)
        return out


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def check(
    folder: Path, model: nn.Module, inputs: Sequence[Tensor], source: Any = None
) -> Counter[str]:
    """Compile, compare with torch, and return how often each layer is called in one run."""
    path = folder / "m.nmc"
    examples = None if source is not None else tuple(inputs)
    result = nmcompile.compile(
        model if source is None else source, output=path, example_inputs=examples
    )
    with torch.no_grad():
        expected = model(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    with runtime.load(path) as session:
        named = dict(zip((i.name for i in session.inputs), map(np.asarray, inputs), strict=True))
        found = list(session.run(named).values())
        timed = [call.layer for call in session.profile(named, repeats=1)]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs.numpy()) < 1e-5
    assert timed == [call.layer for call in session.manifest.calls]
    layers = [layer.name for layer in result.report.layers]
    assert len(layers) == len(set(layers))
    assert set(layers) <= set(timed)
    return Counter(timed)


@pytest.mark.parametrize(
    ("size", "batch"),
    [
        (18, 2),
        (18, 64),
        (19, 7),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in ((18, 7), (18, 8), (19, 2), (19, 8), (19, 64))
        ),
    ],
)
def test_residual_network(tmp_path: Path, batch: int, size: int) -> None:
    # 18 x 18 images of a group begin on the boundary that kernels want for some batches only.
    calls = check(tmp_path, seeded(Residual), [images(batch, 3, size, size)])
    assert calls["stem"] == batch
    assert calls["head"] == 1


def test_parts_in_place_where_images_are_aligned(tmp_path: Path) -> None:
    model = seeded(Branches)
    calls = check(tmp_path, model, [images(8, 3, 16, 16)])
    assert calls["stem"] == calls["left"] == 8
    assert not any("slice" in layer for layer in calls)


def test_onnx_spelling_of_clip(tmp_path: Path) -> None:
    model, x = seeded(Residual), images(8, 3, 18, 18)
    calls = check(tmp_path, model, [x], export_onnx(model, x))
    assert max(calls.values()) == 8


def test_values_that_leave_early_stay_whole(tmp_path: Path) -> None:
    calls = check(tmp_path, seeded(ReturnsEarly), [images(8, 3, 16, 16)])
    assert calls["last"] == 1


def test_operators_across_images_stay_whole(tmp_path: Path) -> None:
    calls = check(tmp_path, seeded(Mixes), [images(8, 3, 16, 16)])
    assert calls["last"] == 1


def test_constants_with_a_batch_stay_whole(tmp_path: Path) -> None:
    calls = check(tmp_path, seeded(PerImageConstant), [images(8, 3, 16, 16)])
    assert calls["last"] == 1


def test_several_inputs(tmp_path: Path) -> None:
    inputs = [images(8, 3, 16, 16), images(8, 5, 16, 16), images(1, 16, 1, 1)]
    calls = check(tmp_path, seeded(Inputs), inputs)
    assert calls["left"] == calls["right"] == calls["middle"] == 8
    assert calls["last"] == 1


def test_weights_are_kept_once(tmp_path: Path) -> None:
    model = seeded(Residual)
    sizes = []
    for batch in (1, 8):
        x = images(batch, 3, 18, 18)
        nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=(x,))
        artifact = read_artifact(tmp_path / "m.nmc")
        sizes.append(sum(array.nbytes for array in artifact.params))
    assert sizes[1] <= sizes[0]


def test_a_batch_split_into_groups_is_one_row_per_layer(tmp_path: Path) -> None:
    x = images(8, 3, 18, 18)
    result = nmcompile.compile(seeded(Residual), output=tmp_path / "m.nmc", example_inputs=(x,))
    with runtime.load(tmp_path / "m.nmc") as session:
        times = session.profile(x, repeats=1)
        rows = layer_rows(times, session.manifest.layers, Roofs(fma=100.0, load=50.0), 1)
    names = [row.layer for row in rows]
    assert len(names) == len(set(names)) < len(times)
    assert sum(row.ms for row in rows) == pytest.approx(sum(call.ms for call in times))
    assert {layer.name for layer in result.report.layers} <= set(names)
