"""Where the elements of a view lie: shapes, strides and offsets of tensors that nobody copies."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Strided:
    """A view of memory: element [i, j, ...] is at offset + i * strides[0] + j * strides[1] + ..."""

    shape: Shape
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def whole(cls, shape: Shape) -> Strided:
        """A tensor as it lies in memory."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(shape, tuple(strides))

    def permuted(self, axes: tuple[int, ...]) -> Strided:
        """With its axes in another order."""
        shape, strides = ([row[axis] for axis in axes] for row in (self.shape, self.strides))
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def sliced(self, axis: int, begin: int, extent: int, step: int = 1) -> Strided:
        """`extent` elements along one axis, from `begin` on, each `step` behind the one before."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + begin * strides[axis]
        shape[axis], strides[axis] = extent, strides[axis] * step
        return Strided(tuple(shape), tuple(strides), offset)

    def broadcast(self, shape: Shape) -> Strided | None:
        """Repeated along axes of extent 1, and new ones in front; None for other shapes."""
        new = len(shape) - len(self.shape)
        if new < 0:
            return None
        old = (1,) * new + self.shape
        strides = [0] * new + list(self.strides)
        for axis, (have, want) in enumerate(zip(old, shape, strict=True)):
            if have != want:
                if have != 1:
                    return None
                strides[axis] = 0
        return Strided(shape, tuple(strides), self.offset)

    def reshaped(self, shape: Shape) -> Strided | None:
        """The same elements in another shape; None where they would have to be copied."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        old = [(e, s) for e, s in zip(self.shape, self.strides, strict=True) if e != 1]
        strides = [0] * len(shape)
        axes = [axis for axis, extent in enumerate(shape) if extent != 1]
        while old or axes:
            if not old or not axes:
                return None
            # The fewest axes behind which both shapes have as many elements.
            mine, theirs = [old.pop()], [axes.pop()]
            have, want = mine[0][0], shape[theirs[0]]
            while have != want:
                if have < want:
                    if not old:
                        return None
                    mine.append(old.pop())
                    have *= mine[-1][0]
                else:
                    if not axes:
                        return None
                    theirs.append(axes.pop())
                    want *= shape[theirs[-1]]
            for (extent, stride), (_, outer) in itertools.pairwise(mine):
                if outer != extent * stride:
                    return None
            step = mine[0][1]
            for axis in theirs:
                strides[axis] = step
                step *= shape[axis]
        return Strided(shape, tuple(strides), self.offset)
