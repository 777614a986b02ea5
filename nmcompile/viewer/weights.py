"""Which weights of a layer are not zero, in the order in which its pattern groups them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nmcompile.sparsity import NM, OneByN, Pattern, detect
from nmcompile.sparsity.groups import as_oihw

Array = npt.NDArray[Any]
Order = Literal["hwi", "ihw"]
"""What a row runs through: kernel positions and in each all input channels, or the other way."""


@dataclass(frozen=True, eq=False)
class WeightMap:
    """The non-zeros of a weight: a row for each output channel.

    mask: bool of shape (O, I * kh * kw), columns in `order`.
    shape: of the weight, OIHW.
    channels: the output channel of each row; not ascending where the blocks of 1xN are scattered.
    """

    pattern: Pattern
    order: Order
    mask: Array
    shape: tuple[int, int, int, int]
    channels: Array

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return float(np.count_nonzero(self.mask)) / self.mask.size

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that the pattern decides on together; (1, 1) for other patterns."""
        if isinstance(self.pattern, NM):
            return 1, self.pattern.m
        if isinstance(self.pattern, OneByN):
            return self.pattern.n, self.shape[2] * self.shape[3]
        return 1, 1

    @property
    def runs_on(self) -> bool:
        """Whether groups of N:M go on from the end of a row in the next one."""
        return isinstance(self.pattern, NM) and self.pattern.axis != "ic"

    @cached_property
    def counts(self) -> dict[int, int]:
        """How many groups or blocks hold how many non-zeros; none for patterns without groups."""
        mask, (height, width) = self.mask, self.block
        if height == width == 1:
            return {}
        if self.runs_on:
            mask = mask.reshape(1, -1)
        rows = np.arange(0, mask.shape[0], height)
        columns = np.arange(0, mask.shape[1], width)
        sums = np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows, 0), columns, 1)
        return dict(sorted(Counter(sums.reshape(-1).tolist()).items()))

    def binned(self, rows: int, columns: int) -> tuple[Array, tuple[int, int]]:
        """Shares of non-zeros in at most so many rows and columns, and how many each is made of."""
        steps = tuple(
            -(-size // most) for size, most in zip(self.mask.shape, (rows, columns), strict=True)
        )
        starts = [
            np.arange(0, size, step) for size, step in zip(self.mask.shape, steps, strict=True)
        ]
        sums = self.mask.astype(np.float64)
        sizes = np.ones(1)
        for axis, start in enumerate(starts):
            sums = np.add.reduceat(sums, start, axis)
            lengths = np.diff([*start, self.mask.shape[axis]])
            sizes = np.multiply.outer(sizes, lengths)
        return sums / sizes[0], (steps[0], steps[1])


def weight_map(weight: Array) -> WeightMap:
    """Arrange a weight as the pattern that it holds groups it.

    Args:
        weight: (O, I) or (O, I, ...), as `nmcompile.sparsity.groups.as_oihw` takes it.

    Raises:
        PatternError: it has another number of dimensions.
        WeightError: a dimension is zero.
    """
    oihw = as_oihw(weight)
    found = detect(oihw)
    pattern = found.pattern
    order: Order = "hwi" if isinstance(pattern, NM) and pattern.axis != "flat" else "ihw"
    nonzero = oihw != 0
    outputs = oihw.shape[0]
    channels = np.arange(outputs) if found.order is None else np.asarray(found.order)
    arranged = nonzero[channels]
    if order == "hwi":
        arranged = arranged.transpose(0, 2, 3, 1)
    o, i, kh, kw = oihw.shape
    return WeightMap(pattern, order, arranged.reshape(outputs, -1), (o, i, kh, kw), channels)


def describe(found: WeightMap) -> list[str]:
    """What a map shows, one sentence each: its axes, its groups, and how full those are."""
    o, i, kh, kw = found.shape
    window, inputs = f"{kh}x{kw} kernel positions", f"{i} input channels"
    columns = inputs
    if kh * kw > 1:
        outer, inner = (window, inputs) if found.order == "hwi" else (inputs, window)
        columns = f"{outer}, in each {inner}"
    said = [f"{o} rows, one for each output channel; columns: {columns}"]
    if (found.channels[1:] < found.channels[:-1]).any():
        said.append(
            "rows are in the order of the blocks, whose filters are scattered over the layer"
        )
    height, width = found.block
    if isinstance(found.pattern, NM):
        said.append(
            f"{found.pattern}: at most {found.pattern.n} of every {width} in a row are not zero"
            + ("; groups run on into the next row" if found.runs_on else "")
        )
    elif isinstance(found.pattern, OneByN):
        kept = sum(number for nonzeros, number in found.counts.items() if nonzeros)
        total = sum(found.counts.values())
        said.append(
            f"{found.pattern}: blocks of {height} rows x {width} column{'s' * (width > 1)} are "
            f"kept or dropped together: {kept} of {total} are kept"
        )
    else:
        said.append(f"{found.pattern}: no groups; {found.density:.1%} of the weights are kept")
    return said


def group_words(found: WeightMap) -> str:
    """How many groups of N:M hold how many non-zeros; "" for other patterns."""
    if not isinstance(found.pattern, NM):
        return ""
    total = sum(found.counts.values())
    parts = [f"{nonzeros}: {number / total:.1%}" for nonzeros, number in found.counts.items()]
    return f"non-zeros in a group: {', '.join(parts)}"


KEPT, DROPPED = "#", "."


def draw_text(found: WeightMap, rows: int, columns: int) -> list[str]:
    """The first rows and columns in characters: # not zero, . zero, | and - between groups.

    Args:
        found: what to draw.
        rows: at most so many lines of weights.
        columns: at most so many characters in a line.
    """
    height, width = found.block
    o, length = found.mask.shape
    lines = []
    for row in range(min(rows, o)):
        shift = row * length if found.runs_on else 0
        line = ""
        for column in range(length):
            first = width > 1 and (shift + column) % width == 0
            if first and column:
                line += "|"
            line += KEPT if found.mask[row, column] else DROPPED
            if len(line) >= columns:
                break
        line = line[:columns]
        if height > 1 and row and row % height == 0:
            lines.append("-" * len(line))
        lines.append(line)
    return lines
