"""Kernels that slide a window over one channel at a time: depthwise convolution and pooling.

Each channel is first copied into a padded plane per column phase (column modulo stride), so that
every window position is one unaligned vector load whatever the stride.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    load,
    splat,
    store,
)
from nmcompile.kernels.avx512.staging import copy_row
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d, Epilogue, GlobalAverage, Pool2d

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class _Window:
    """Geometry shared by depthwise convolution and pooling; one channel."""

    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int

    @property
    def vectors(self) -> int:
        return -(-self.out_width // LANES)

    @property
    def columns(self) -> int:
        """Columns of one phase plane: every vector load stays inside."""
        reach = (self.kernel[1] - 1) * self.dilation[1] // self.stride[1]
        return self.vectors * LANES + reach

    @property
    def rows(self) -> int:
        return (self.out_height - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def phases(self) -> tuple[int, ...]:
        shifts = {kw * self.dilation[1] % self.stride[1] for kw in range(self.kernel[1])}
        return tuple(sorted(shifts))

    def offset(self, kh: int, kw: int) -> int:
        """Of window position (kh, kw) at output (0, 0), in floats from the first plane."""
        shift = kw * self.dilation[1]
        plane = self.phases.index(shift % self.stride[1])
        row = plane * self.rows + kh * self.dilation[0]
        return row * self.columns + shift // self.stride[1]


def _copy_plane(window: _Window, x: Buffer, start: Expr, planes: Buffer, fill: float) -> None:
    """Copy one channel, `fill` outside the image."""
    stride = window.stride[1]
    for index, phase in enumerate(window.phases):
        low = max(0, -((phase - window.left) // stride))
        high = min(window.columns, (window.in_width - 1 - phase + window.left) // stride + 1)
        with T.serial(0, window.rows) as row:
            source = T.bind(row - window.top)
            at = T.bind((index * window.rows + row) * window.columns)
            for first in range(0, window.columns, LANES):
                store(planes, at + first, splat(fill), min(LANES, window.columns - first))
            with T.If(tirx.all(source >= 0, source < window.in_height)):
                with T.Then():
                    begin = start + source * window.in_width + (phase - window.left)
                    copy_row(x, begin + low * stride, stride, planes, at + low, high - low)


def _slide(
    window: _Window,
    planes: Buffer,
    start: float | Expr,
    step: Callable[[Expr, Expr, int, int], Expr],
    finish: Callable[[Expr, Expr, int, int], None],
) -> None:
    """For every output vector: acc = step(acc, input, kh, kw) over the window, then finish."""
    with T.serial(0, window.out_height) as row:
        for v in range(window.vectors):
            base = T.bind(row * (window.stride[0] * window.columns) + v * LANES)
            value = T.bind(splat(start))
            for kh in range(window.kernel[0]):
                for kw in range(window.kernel[1]):
                    x = load(planes, base + window.offset(kh, kw))
                    value = T.bind(step(value, x, kh, kw))
            finish(value, row, v * LANES, min(LANES, window.out_width - v * LANES))


def emit_depthwise(name: str, conv: Conv2d, epilogue: Epilogue) -> object:
    """The TIR function (x, weight, [bias], [residual], out); weight (out_channels, kh * kw)."""
    window = _Window(
        conv.in_height,
        conv.in_width,
        conv.out_height,
        conv.out_width,
        conv.kernel,
        conv.stride,
        conv.dilation,
        conv.padding[0],
        conv.padding[1],
    )
    out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
        weight = func.tensor("values", (conv.out_channels * conv.taps,))
        bias = func.tensor("bias", (conv.out_channels,)) if epilogue.bias else None
        residual, out = func.output(out_shape, epilogue)
        x = func.flat(x)
        with T.parallel(0, conv.batch * conv.in_channels) as nc:
            planes = T.alloc_buffer((len(window.phases) * window.rows * window.columns,), align=64)
            _copy_plane(window, x, nc * (conv.in_height * conv.in_width), planes, 0.0)
            with T.serial(0, conv.group_out) as m:
                channel = T.bind(nc % conv.in_channels * conv.group_out + m)
                plane = T.bind((nc * conv.group_out + m) * conv.out_pixels)

                def step(acc: Expr, value: Expr, kh: int, kw: int, channel: Expr = channel) -> Expr:
                    tap = kh * conv.kernel[1] + kw
                    return acc + splat(weight[channel * conv.taps + tap]) * value

                def finish(
                    value: Expr, row: Expr, column: int, active: int, plane: Expr = plane
                ) -> None:
                    at = T.bind(plane + row * conv.out_width + column)
                    if residual is not None:
                        value = value + load(residual, at, active)
                    store(out, at, activate(value, epilogue.activation), active)

                start = bias[channel] if bias is not None else 0.0
                _slide(window, planes, start, step, finish)
    return func.result()


def average_scale(pool: Pool2d) -> npt.NDArray[np.float32]:
    """1 / (number of averaged pixels) per output pixel, shape (out_height, out_width)."""

    def counted(axis: int, out: int, size: int, before: int, after: int) -> npt.NDArray[np.int64]:
        first = np.arange(out)[:, None] * pool.stride[axis] - before
        at = first + np.arange(pool.kernel[axis])[None] * pool.dilation[axis]
        low, high = (-before, size + after) if pool.count_include_pad else (0, size)
        count: npt.NDArray[np.int64] = ((at >= low) & (at < high)).sum(axis=1)
        return count

    top, left, bottom, right = pool.padding
    rows = counted(0, pool.out_height, pool.in_height, top, bottom)
    columns = counted(1, pool.out_width, pool.in_width, left, right)
    count = np.maximum(1, rows[:, None] * columns[None]).astype(np.float32)
    scale: npt.NDArray[np.float32] = np.float32(1.0) / count
    return scale


def emit_pool(name: str, pool: Pool2d) -> object:
    """The TIR function (x, [scale], out); `scale` of `average_scale` for average pooling."""
    window = _Window(
        pool.in_height,
        pool.in_width,
        pool.out_height,
        pool.out_width,
        pool.kernel,
        pool.stride,
        pool.dilation,
        pool.padding[0],
        pool.padding[1],
    )
    average = pool.kind == "average"
    planes_in = pool.batch * pool.channels
    pixels = pool.out_height * pool.out_width
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.channels, pool.in_height, pool.in_width))
        scale = func.tensor("scale", (pixels,)) if average else None
        out = func.tensor("out", (pool.batch, pool.channels, pool.out_height, pool.out_width))
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, planes_in) as nc:
            planes = T.alloc_buffer((len(window.phases) * window.rows * window.columns,), align=64)
            fill = 0.0 if average else LOWEST
            _copy_plane(window, x, nc * (pool.in_height * pool.in_width), planes, fill)

            def step(acc: Expr, value: Expr, kh: int, kw: int) -> Expr:
                return acc + value if average else T.max(acc, value)

            def finish(value: Expr, row: Expr, column: int, active: int) -> None:
                at = T.bind(row * pool.out_width + column)
                if scale is not None:
                    value = value * load(scale, at, active)
                store(out, nc * pixels + at, value, active)

            _slide(window, planes, fill, step, finish)
    return func.result()


def emit_global_average(name: str, pool: GlobalAverage) -> object:
    """The TIR function (x, out)."""
    planes, pixels = pool.batch * pool.channels, pool.height * pool.width
    full, rest = divmod(pixels, LANES)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.channels, pool.height, pool.width))
        out = func.tensor("out", pool.out_shape)
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, planes) as nc:
            acc = T.alloc_buffer((LANES,), scope="local")
            total = T.alloc_buffer((1,), scope="local")
            store(acc, 0, splat(0.0))
            with T.serial(0, full) as v:
                store(acc, 0, load(acc, 0) + load(x, nc * pixels + v * LANES))
            if rest:
                store(acc, 0, load(acc, 0) + load(x, nc * pixels + full * LANES, rest))
            T.buffer_store(total, T.float32(0), [0])
            with T.serial(0, LANES) as lane:
                T.buffer_store(total, total[0] + acc[lane], [0])
            T.buffer_store(out, total[0] * T.float32(1.0 / pixels), [nc])
    return func.result()
