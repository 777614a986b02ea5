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


@dataclass(frozen=True)
class Taps:
    """The taps of one window.

    image, top, left: the image, and the row and column of the first tap.
    inside: whether all of them are known to lie in the image.
    """

    pool: Pool2d
    x: Buffer
    image: Expr
    top: Expr
    left: Expr
    inside: bool

    def visit(self, channel: Expr, active: int, body: Callable[[Expr], None]) -> None:
        """Emit `body(64 bytes)` for every tap; those outside of the image are zero, unread."""
        height, width = self.pool.kernel
        if height * width <= UNROLLED:
            for tap in range(height * width):
                body(self._load(*divmod(tap, width), channel, active))
            return
        with T.serial(0, height) as kh, T.serial(0, width) as kw:
            body(self._load(kh, kw, channel, active))

    def _load(self, kh: Expr, kw: Expr, channel: Expr, active: int) -> Expr:
        pool = self.pool
        row = self.top + kh * pool.dilation[0]
        column = self.left + kw * pool.dilation[1]
        if self.inside:
            return T.bind(load_bytes(self.x, self._address(row, column) + channel, active))
        row, column = T.bind(row), T.bind(column)
        there = tirx.all(row >= 0, row < pool.in_height, column >= 0, column < pool.in_width)
        row = T.max(T.min(row, pool.in_height - 1), 0)
        column = T.max(T.min(column, pool.in_width - 1), 0)
        value = load_bytes(self.x, self._address(row, column) + channel, active)
        return T.bind(T.Select(there, value, T.broadcast(T.int8(0), BYTES)))

    def _address(self, row: Expr, column: Expr) -> Expr:
        pool = self.pool
        return ((self.image * pool.in_height + row) * pool.in_width + column) * pool.channels


def over_pixels(pool: Pool2d, x: Buffer, body: Callable[[Expr, Expr, Taps], None]) -> None:
    """Emit `body(image, pixel, taps)` for every output pixel, in parallel over rows.

    It is emitted twice: for windows inside the image, and for those that may not be.
    """
    rows, columns = (_whole(covered(pool, axis) == pool.kernel[axis]) for axis in (0, 1))
    work = pool.batch * pool.out_height * pool.out_width * pool.channels * pool.kernel[0]
    with tasks(pool.batch * pool.out_height, work * pool.kernel[1]) as task:
        image, row = T.bind(task // pool.out_height), T.bind(task % pool.out_height)
        top = T.bind(row * pool.stride[0] - pool.padding[0])
        between = tirx.all(row >= rows[0], row < rows[1])
        count = T.bind(T.Select(between, T.int32(columns[1] - columns[0]), T.int32(0)))
        for inside in (True, False):
            with T.serial(0, count if inside else pool.out_width - count) as i:
                if inside:
                    column = T.bind(i + columns[0])
                else:
                    column = T.bind(T.Select(tirx.any(count == 0, i < columns[0]), i, i + count))
                left = T.bind(column * pool.stride[1] - pool.padding[1])
                taps = Taps(pool, x, image, top, left, inside)
                body(image, T.bind(row * pool.out_width + column), taps)


def _whole(inside: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The range of outputs whose windows lie inside."""
    found = np.flatnonzero(inside)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)
