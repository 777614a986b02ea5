"""Kernels that slide a window over one channel at a time: depthwise convolution and pooling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Expr,
    activate,
    activate_in_place,
    largest,
    load,
    splat,
    split_activation,
    store,
    widen,
)
from nmcompile.kernels.avx512.sliding.loops import Window, source_of
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d, Epilogue, GlobalAverage, Pool2d


def emit_depthwise(name: str, conv: Conv2d, epilogue: Epilogue) -> object:
    """The TIR function (x, weight, [bias], [residual], out); weight (out_channels, kh * kw)."""
    window = Window.of(conv)
    out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    at_once, stored = split_activation(epilogue.activation)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
        weight = func.tensor("values", (conv.out_channels * conv.taps,))
        bias = func.tensor("bias", (conv.out_channels,)) if epilogue.bias else None
        residual, out = func.output(out_shape, epilogue)
        x = func.flat(x)
        with T.parallel(0, conv.batch * conv.in_channels) as nc:
            source = source_of(window, x, nc * (conv.in_height * conv.in_width), 0.0)
            with T.serial(0, conv.group_out) as m:
                channel = T.bind(nc % conv.in_channels * conv.group_out + m)
                plane = T.bind((nc * conv.group_out + m) * conv.out_pixels)

                def step(
                    acc: Expr, value: Expr, kh: Expr, kw: int, channel: Expr = channel
                ) -> Expr:
                    tap = kh * conv.kernel[1] + kw
                    return acc + splat(weight[channel * conv.taps + tap], source.lanes) * value

                def finish(
                    value: Expr, row: Expr, column: Expr, active: int, plane: Expr = plane
                ) -> None:
                    value = widen(value, source.lanes)
                    at = T.bind(plane + row * conv.out_width + column)
                    if residual is not None:
                        value = value + load(residual, at, active)
                    store(out, at, activate(value, at_once), active)

                start = bias[channel] if bias is not None else 0.0
                source.slide(start, step, finish)
                activate_in_place(out, plane, conv.out_pixels, stored)
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
    window = Window.of(pool)
    average = pool.kind == "average"
    planes_in = pool.batch * pool.channels
    pixels = pool.out_height * pool.out_width
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.channels, pool.in_height, pool.in_width))
        scale = func.tensor("scale", (pixels,)) if average else None
        out = func.tensor("out", (pool.batch, pool.channels, pool.out_height, pool.out_width))
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, planes_in) as nc:
            fill = 0.0 if average else -math.inf
            source = source_of(window, x, nc * (pool.in_height * pool.in_width), fill)

            def finish(value: Expr, row: Expr, column: Expr, active: int) -> None:
                value = widen(value, source.lanes)
                at = T.bind(row * pool.out_width + column)
                if scale is not None:
                    value = value * load(scale, at, active)
                store(out, nc * pixels + at, value, active)

            if average:
                source.slide(fill, lambda acc, value, kh, kw: acc + value, finish)
            else:
                source.join(fill, largest, finish)
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
