"""The distinct convolutions of the bench models at 224², kept as one text file per model.

python -m benchmarks.shapes   # writes the files anew from benchmarks/models.py
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import nn

from nmcompile.kernels.spec import Conv2d

FOLDER = Path(__file__).parent
COLUMNS = ("count", "in", "height", "width", "out", "kernel", "stride", "padding", "groups")


def read_shapes(model: str) -> list[tuple[Conv2d, int]]:
    """Convolutions of `benchmarks/shapes/MODEL.txt`, batch 1, and how often each occurs.

    Raises:
        ValueError: a line does not have nine whole numbers.
    """
    found = []
    path = FOLDER / f"{model}.txt"
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            count, inputs, height, width, outputs, kernel, stride, padding, groups = (
                int(word) for word in line.split()
            )
        except ValueError as error:
            raise ValueError(
                f"{path.name}, line {number}: expected the {len(COLUMNS)} whole numbers "
                f"{' '.join(COLUMNS)}, found {line!r}"
            ) from error
        pads = (padding, padding, padding, padding)
        conv = Conv2d(
            *(1, inputs, height, width, outputs),
            kernel=(kernel, kernel),
            stride=(stride, stride),
            padding=pads,
            groups=groups,
        )
        found.append((conv, count))
    return found


def shapes_of(model: nn.Module, size: int = 224) -> list[tuple[Conv2d, int]]:
    """The convolutions that one image of `size`² meets, in order of first use."""
    seen: Counter[Conv2d] = Counter()

    def record(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
        top, left = layer.padding
        conv = Conv2d(
            *(1, layer.in_channels, inputs[0].shape[2], inputs[0].shape[3], layer.out_channels),
            kernel=(layer.kernel_size[0], layer.kernel_size[1]),
            stride=(layer.stride[0], layer.stride[1]),
            padding=(top, left, top, left),
            groups=layer.groups,
        )
        seen[conv] += 1

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return list(seen.items())


def spell(shapes: list[tuple[Conv2d, int]]) -> str:
    """The text of one file; kernels, strides and paddings are square in all bench models."""
    rows = [COLUMNS] + [
        tuple(
            str(value)
            for value in (
                *(count, conv.in_channels, conv.in_height, conv.in_width, conv.out_channels),
                *(conv.kernel[0], conv.stride[0], conv.padding[0], conv.groups),
            )
        )
        for conv, count in shapes
    ]
    lines = [" ".join(f"{word:>7}" for word in row) for row in rows]
    return "\n".join(["# " + lines[0][2:], *lines[1:]]) + "\n"
