"""Times `torch.compile(model, backend="nmcompile")` against eager torch and inductor.

    python -m benchmarks.bench_torch_compile --pattern 2:4 --threads 1

ResNet-50, and a detector with a feature pyramid, shared heads and Python control flow over what it
has found. Each backend compiles the same model; then they take turns. At the end a second process
makes its first call, from what the first one has kept. Prints one row per model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import conv_bn, randomise, residual_stages, resnet50, sparsify
from nmcompile.bench.clock import interleave
from nmcompile.bench.pinning import on_cores

SIZES = {"resnet50": 224, "detector": 320}
BACKENDS = ("eager", "inductor", "nmcompile")
FEATURES = 128  # channels of the pyramid
OVERLAP = 0.5  # from which the weaker one of two boxes goes
KEPT = 100  # boxes that are looked at


class Detector(nn.Module):
    """RetinaNet (Lin et al., ICCV 2017) over ResNet-18's stages, one anchor at each place.

    Returns boxes (found, 4) as left, top, right, bottom in pixels, scores (found,) and classes.
    """

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        stages, _ = residual_stages(64, (64, 128, 256, 512), (2, 2, 2, 2))
        self.stages = nn.ModuleList(nn.Sequential(*stages[i : i + 2]) for i in range(0, 8, 2))
        self.sides = nn.ModuleList(nn.Conv2d(c, FEATURES, 1) for c in (128, 256, 512))
        self.smooth = nn.ModuleList(nn.Conv2d(FEATURES, FEATURES, 3, padding=1) for _ in range(3))
        self.scores, self.boxes = self._head(classes), self._head(4)

    @staticmethod
    def _head(outputs: int) -> nn.Sequential:
        body = [conv_bn(FEATURES, FEATURES, 3) for _ in range(2)]
        return nn.Sequential(*body, nn.Conv2d(FEATURES, outputs, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = self._predict(image)
        best, classes = scores.max(-1)
        order = best.argsort(descending=True)[:KEPT]
        boxes, best, classes = boxes[order], best[order], classes[order]
        kept: list[int] = []
        for index in range(len(order)):
            if float(best[index]) < 0.5:
                break
            if not kept or float(overlaps(boxes[index], boxes[kept]).max()) < OVERLAP:
                kept.append(index)
        return boxes[kept], best[kept], classes[kept]

    def _predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (places, 4) and scores (places, classes) of one image."""
        x, levels = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        sides = [side(level) for side, level in zip(self.sides, levels[1:], strict=True)]
        for low in (1, 0):
            up = functional.interpolate(sides[low + 1], size=sides[low].shape[-2:])
            sides[low] = sides[low] + up
        boxes, scores = [], []
        for side, smooth in zip(sides, self.smooth, strict=True):
            level = smooth(side)
            stride = image.shape[-1] // level.shape[-1]
            boxes.append(decode(self.boxes(level), stride))
            scores.append(self.scores(level)[0].flatten(1).T.sigmoid())
        return torch.cat(boxes), torch.cat(scores)


def decode(offsets: Tensor, stride: int) -> Tensor:
    """Boxes (places, 4) of one level: (1, 4, height, width) moves and grows an anchor each."""
    height, width = offsets.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack([columns, rows], -1).reshape(-1, 2) * stride + stride / 2
    moved = offsets[0].flatten(1).T
    centre = centres + moved[:, :2].clamp(-2, 2) * stride
    half = (moved[:, 2:].clamp(-1, 1).exp() * stride) * 2
    return torch.cat([centre - half, centre + half], -1)


def overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one box (4,) with others (n, 4)."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, others)]
    return common / (areas[0] + areas[1] - common)


def build(name: str, pattern: str) -> nn.Module:
    """One of the models, with seeded weights of the pattern."""
    model = resnet50() if name == "resnet50" else Detector()
    return sparsify(randomise(model), pattern)


def example(name: str) -> Tensor:
    """A seeded image (1, 3, size, size)."""
    size = SIZES[name]
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module, backend: str, cache: str) -> Callable[[Tensor], Any]:
    """The model as one backend runs it."""
    if backend == "eager":
        return model
    options = {"cache": cache} if backend == "nmcompile" else None
    return torch.compile(model, backend=backend, options=options)


def agree(found: Any, expected: Any) -> bool:
    """Whether two results are the same within float32's rounding, relative to the largest value."""
    if isinstance(expected, Tensor):
        found, expected = (found,), (expected,)
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= 1e-3 * max(1.0, float(b.abs().max()))
        for a, b in zip(found, expected, strict=True)
    )


def measure(name: str, pattern: str, rounds: int, cache: str) -> None:
    """Time one model; print its row."""
    model, x = build(name, pattern), example(name)
    expected = model(x)
    turns: dict[str, Callable[[], float]] = {}
    for backend in BACKENDS:
        torch._dynamo.reset()
        run = compiled(model, backend, cache)
        start = time.perf_counter()
        found = run(x)
        print(f"{name} {backend}: first call {time.perf_counter() - start:.1f} s", flush=True)
        if not agree(found, expected):
            print(f"error: {name} by {backend} differs from eager")
            sys.exit(1)
        turns[backend] = timed(run, x)
    samples = interleave(turns, rounds).samples
    eager, inductor, ours = (float(np.median(samples[backend])) for backend in BACKENDS)
    print(
        f"{name} {pattern}: eager {eager:.1f} ms, inductor {inductor:.1f} ms, "
        f"nmcompile {ours:.1f} ms, {min(eager, inductor) / ours:.2f}x the faster",
        flush=True,
    )


def timed(run: Callable[[Tensor], Any], x: Tensor) -> Callable[[], float]:
    """A turn of one backend, in seconds."""

    def turn() -> float:
        start = time.perf_counter()
        run(x)
        return time.perf_counter() - start

    return turn


def first_call(name: str, pattern: str, cache: str) -> None:
    """What a later process does: print how long its first call takes, after its imports."""
    model, x = build(name, pattern), example(name)
    run = compiled(model, "nmcompile", cache)
    start = time.perf_counter()
    run(x)
    print(f"{name}: first call of a second process {time.perf_counter() - start:.2f} s")


def main() -> None:
    """Measure each model, then its first call in a second process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cache", help="folder; with it only the first call is measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("error", RuntimeWarning)
    with torch.no_grad():
        if arguments.cache is not None:
            for name in arguments.models:
                first_call(name, arguments.pattern, arguments.cache)
            return
        for name in arguments.models:
            with tempfile.TemporaryDirectory() as cache, on_cores(arguments.threads):
                measure(name, arguments.pattern, arguments.rounds, cache)
                command = ("-m", "benchmarks.bench_torch_compile", "--models", name)
                more = ("--pattern", arguments.pattern, "--threads", str(arguments.threads))
                subprocess.run([sys.executable, *command, *more, "--cache", cache], check=True)


if __name__ == "__main__":
    main()
