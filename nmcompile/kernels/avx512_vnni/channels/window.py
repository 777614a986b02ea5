"""Where a pooling window's taps lie in an image, for one output pixel at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Buffer, Expr
from nmcompile.kernels.avx512_vnni.channels.frame import tasks
from nmcompile.kernels.avx512_vnni.emit import BYTES, load_bytes
from nmcompile.kernels.spec import Pool2d

UNROLLED = 16  # taps up to which a window is written out


def covered(pool: Pool2d, axis: int, *, padding: bool = False) -> npt.NDArray[np.int64]:
    """Taps of each window along one axis that lie in the image, or in the padded one."""
    out = (pool.out_height, pool.out_width)[axis]
    size = (pool.in_height, pool.in_width)[axis]
    before, after = pool.padding[axis], pool.padding[axis + 2]
    first = np.arange(out)[:, None] * pool.stride[axis] - before
    at = first + np.arange(pool.kernel[axis])[None] * pool.dilation[axis]
    low, high = (-before, size + after) if padding else (0, size)
    count: npt.NDArray[np.int64] = ((at >= low) & (at < high)).sum(axis=1)
    return count


class Line:
    """Positions along one axis that the taps of one window read.

    They lie in memory, as TVM's simplifier takes seconds for the minima and maxima of nested
    windows; LLVM makes registers of them.
    """

    def __init__(self, taps: int, dilation: int, size: int) -> None:
        self._taps, self._dilation, self._size = taps, dilation, size
        self._at = T.alloc_buffer((taps,), "int32", scope="local")
        self._inside = T.alloc_buffer((taps,), "int32", scope="local")

    def place(self, first: Expr, start: Expr, step: int) -> None:
        """Emit positions as `start` + `step` * index, for a window whose first tap is `first`."""

        def tap(k: Expr) -> None:
            index = T.bind(first + k * self._dilation)
            there = tirx.all(index >= 0, index < self._size)
            T.buffer_store(self._inside, T.Select(there, T.int32(1), T.int32(0)), [k])
            T.buffer_store(self._at, start + T.max(T.min(index, self._size - 1), 0) * step, [k])

        if self._taps <= UNROLLED:
            for k in range(self._taps):
                tap(T.int32(k))
        else:
            with T.serial(0, self._taps) as k:
                tap(k)

    def at(self, k: Expr) -> Expr:
        """The position of one tap, of the nearest one where that lies outside."""
        return self._at[k]

    def inside(self, k: Expr) -> Expr:
        """1 where a tap lies in the image, else 0."""
        return self._inside[k]


@dataclass(frozen=True)
class Taps:
    """The taps of one window.

    rows: in elements from the tensor's start.
    columns: in elements; None where all taps are known to lie in the image.
    left: of the first tap, in elements.
    """

    pool: Pool2d
    x: Buffer
    rows: Line
    columns: Line | None
    left: Expr

    def visit(self, channel: Expr, active: int, body: Callable[[Expr], None]) -> None:
        """Emit `body(64 bytes)` for every tap; those outside of the image are zero, unread."""
        height, width = self.pool.kernel
        if height * width <= UNROLLED:
            for tap in range(height * width):
                kh, kw = divmod(tap, width)
                body(self._load(T.int32(kh), T.int32(kw), channel, active))
            return
        with T.serial(0, height) as row, T.serial(0, width) as column:
            body(self._load(row, column, channel, active))

    def _load(self, kh: Expr, kw: Expr, channel: Expr, active: int) -> Expr:
        row = self.rows.at(kh) + channel
        if self.columns is None:
            step = self.pool.dilation[1] * self.pool.channels
            return T.bind(load_bytes(self.x, T.bind(row + self.left + kw * step), active))
        value = load_bytes(self.x, T.bind(row + self.columns.at(kw)), active)
        there = self.rows.inside(kh) * self.columns.inside(kw) > 0
        return T.bind(T.Select(there, value, T.broadcast(T.int8(0), BYTES)))


def over_pixels(pool: Pool2d, x: Buffer, body: Callable[[Expr, Expr, Taps], None]) -> None:
    """Emit `body(image, pixel, taps)` for every output pixel, in parallel over rows.

    It is emitted twice: for windows inside the image, and for those that may not be.
    """
    rows, columns = (_whole(covered(pool, axis) == pool.kernel[axis]) for axis in (0, 1))
    work = pool.batch * pool.out_height * pool.out_width * pool.channels * pool.kernel[0]
    line = pool.in_width * pool.channels
    with tasks(pool.batch * pool.out_height, work * pool.kernel[1]) as task:
        image, row = T.bind(task // pool.out_height), T.bind(task % pool.out_height)
        row_taps = Line(pool.kernel[0], pool.dilation[0], pool.in_height)
        top = T.bind(row * pool.stride[0] - pool.padding[0])
        row_taps.place(top, image * (pool.in_height * line), line)
        # Columns of this row whose windows lie inside: [columns[0], columns[0] + count[0]).
        count = T.alloc_buffer((1,), "int32", scope="local")
        between = tirx.all(row >= rows[0], row < rows[1])
        T.buffer_store(count, T.Select(between, T.int32(columns[1] - columns[0]), T.int32(0)), [0])
        with T.serial(0, count[0]) as i:
            column = T.bind(i + columns[0])
            left = T.bind((column * pool.stride[1] - pool.padding[1]) * pool.channels)
            body(
                image, row * pool.out_width + column, Taps(pool, x, row_taps, None, left)
            )  # fmt: skip
        with T.serial(0, pool.out_width - count[0]) as i:
            column_taps = Line(pool.kernel[1], pool.dilation[1], pool.in_width)
            column = T.alloc_buffer((1,), "int32", scope="local")
            T.buffer_store(column, i + T.Select(i < columns[0], T.int32(0), count[0]), [0])
            left = T.bind(column[0] * pool.stride[1] - pool.padding[1])
            column_taps.place(left, T.int32(0), pool.channels)
            taps = Taps(pool, x, row_taps, column_taps, left)
            body(image, row * pool.out_width + column[0], taps)


def _whole(inside: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The range of outputs whose windows lie inside."""
    found = np.flatnonzero(inside)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)
