"""Where the elements of a view lie: shapes, strides and offsets of tensors that nobody copies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Shape = tuple[int, ...]
Parts = tuple[tuple[int, int], ...]
"""An axis as (extent, stride) of what it runs through, the outermost first.

Most axes have one part. Those of heads that are repeated for groups of queries, and then joined
with the groups, have two.
"""


@dataclass(frozen=True)
class Strided:
    """A view of memory.

    offset: of the first element. axes: their parts, none of extent 1, none that could be joined.
    """

    axes: tuple[Parts, ...]
    offset: int = 0

    @classmethod
    def whole(cls, shape: Shape) -> Strided:
        """A tensor as it lies in memory."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(tuple(_joined([part]) for part in zip(shape, strides, strict=True)))

    @property
    def shape(self) -> Shape:
        """Extents of the axes."""
        return tuple(math.prod(extent for extent, _ in parts) for parts in self.axes)

    @property
    def is_simple(self) -> bool:
        """Whether each axis has one stride."""
        return all(len(parts) <= 1 for parts in self.axes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of a simple view: element [i, j, ...] is at offset + i * strides[0] + j * strides[1] ...

        0 for axes of extent 1.
        """
        assert self.is_simple
        return tuple(parts[0][1] if parts else 0 for parts in self.axes)

    def permuted(self, axes: tuple[int, ...]) -> Strided:
        """With its axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in axes))

    def sliced(self, axis: int, begin: int, extent: int, step: int = 1) -> Strided | None:
        """`extent` elements along one axis, from `begin` on, each `step` behind the one before.

        None where an axis has several parts, of which these are not all or one.
        """
        parts, offset = self.axes[axis], self.offset
        if len(parts) > 1 and (begin, extent, step) == (0, self.shape[axis], 1):
            return self
        if len(parts) > 1 and extent > 1:
            return None
        for inner, stride in reversed(parts):
            begin, place = (0, begin) if len(parts) == 1 else divmod(begin, inner)
            offset += place * stride
        rest = _joined([(extent, parts[0][1] * step)]) if len(parts) == 1 else ()
        return Strided((*self.axes[:axis], rest, *self.axes[axis + 1 :]), offset)

    def broadcast(self, shape: Shape) -> Strided | None:
        """Repeated along axes of extent 1, and new ones in front; None for other shapes."""
        new = len(shape) - len(self.axes)
        if new < 0:
            return None
        axes = [*itertools.repeat((), new), *self.axes]
        for axis, (have, want) in enumerate(zip((1,) * new + self.shape, shape, strict=True)):
            if have != want:
                if have != 1:
                    return None
                axes[axis] = ((want, 0),)
        return replace(self, axes=tuple(axes))

    def reshaped(self, shape: Shape) -> Strided | None:
        """The same elements in another shape; None where no parts of axes make up the new ones."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        left = list(_joined([part for parts in self.axes for part in parts]))
        axes = list[Parts]()
        for wanted in reversed(shape):
            taken = list[tuple[int, int]]()
            while wanted > 1:
                extent, stride = left.pop()
                if wanted % extent == 0:
                    taken.append((extent, stride))
                    wanted //= extent
                elif extent % wanted == 0:
                    taken.append((wanted, stride))
                    left.append((extent // wanted, stride * wanted))
                    wanted = 1
                else:
                    return None
            axes.append(_joined(taken[::-1]))
        return replace(self, axes=tuple(axes[::-1]))


def merged_lead(lead: Shape, views: Sequence[Strided]) -> Shape:
    """As few axes in front of matrices as all of their simple views have strides for."""
    found = list[int](lead[:1])
    for axis, extent in enumerate(lead[1:]):
        if all(view.strides[axis] == extent * view.strides[axis + 1] for view in views):
            found[-1] *= extent
        else:
            found.append(extent)
    return tuple(found)


def _joined(parts: list[tuple[int, int]]) -> Parts:
    """With what runs on from one part to the next as one, and nothing of extent 1."""
    found = list[tuple[int, int]]()
    for extent, stride in parts:
        if extent == 1:
            continue
        if found and found[-1][1] == extent * stride:
            found[-1] = (found[-1][0] * extent, stride)
        else:
            found.append((extent, stride))
    return tuple(found)
