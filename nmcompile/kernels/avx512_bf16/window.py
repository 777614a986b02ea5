"""Depthwise convolution and pooling over NHWC bfloat16, computed in float32.

They are bound by memory and by the loads of their windows: 32 channels of a pixel at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, activate, lanes, largest, load, splat
from nmcompile.kernels.avx512_bf16.emit import (
    PAIR,
    declare_output,
    instructions,
    load_floats,
    store_floats,
)
from nmcompile.kernels.avx512_bf16.layout import padded
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d, Epilogue, Pool2d

CHANNELS = PAIR * LANES  # of one step


def emit_depthwise(name: str, conv: Conv2d, epilogue: Epilogue) -> Any:
    """The TIR function (x, weights, bias, [residual], out).

    x (N, H, W, C), residual and out (N, OH, OW, C): bfloat16, channels padded. weights
    (kh * kw, C), bias (C): float32, channels in whole vectors of 16.
    """
    channels = padded(conv.in_channels)
    whole = -(-channels // LANES) * LANES
    shape = (conv.batch, conv.out_height, conv.out_width, channels)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (conv.batch, conv.in_height, conv.in_width, channels), "bfloat16")
        weights = func.tensor("weights", (conv.taps, whole))
        bias = func.tensor("bias", (whole,))
        added, target = declare_output(func, shape, epilogue)
        source, factors = func.bytes_of(x), func.flat(weights)
        window = _Window(conv, conv.out_height, conv.out_width, channels)

        def step(pixel: _Pixel, channel: Expr, active: int) -> None:
            count = -(-active // LANES)
            sums = [_accumulator(load(bias, channel + u * LANES)) for u in range(count)]
            with window.taps(pixel) as (tap, place):
                for u, value in enumerate(sums):
                    at = place + channel + u * LANES
                    factor = load(factors, tap * whole + channel + u * LANES)
                    x_value = load_floats(source, at, active - u * LANES)
                    _set(value, _get(value) + x_value * factor)
            where = T.bind(pixel.number * channels + channel)
            values = []
            for u, value in enumerate(sums):
                result = _get(value)
                if added is not None:
                    more = load_floats(added, where + u * LANES, active - u * LANES)
                    result = T.bind(result + more)
                values.append(T.bind(activate(result, epilogue.activation)))
            store_floats(target, where, values, active)

        with instructions():
            window.over(step)
    return func.result()


def emit_pool(name: str, pool: Pool2d) -> Any:
    """The TIR function (x, out) of bfloat16, channels padded."""
    channels = padded(pool.channels)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.in_height, pool.in_width, channels), "bfloat16")
        out = func.tensor(
            "out", (pool.batch, pool.out_height, pool.out_width, channels), "bfloat16"
        )
        source, target = func.bytes_of(x), func.bytes_of(out)
        window = _Window(pool, pool.out_height, pool.out_width, channels)
        lowest = -math.inf if pool.kind == "max" else 0.0

        def step(pixel: _Pixel, channel: Expr, active: int) -> None:
            count = -(-active // LANES)
            found = [_accumulator(splat(lowest)) for _ in range(count)]
            covered = T.alloc_buffer((1,), "int32", scope="local")
            T.buffer_store(covered, T.int32(0), [0])
            with window.taps(pixel) as (_, place):
                for u, value in enumerate(found):
                    at = place + channel + u * LANES
                    x_value = load_floats(source, at, active - u * LANES)
                    old = _get(value)
                    new = largest([x_value, old]) if pool.kind == "max" else old + x_value
                    _set(value, new)
                T.buffer_store(covered, covered[0] + 1, [0])
            values = [_get(value) for value in found]
            if pool.kind == "average":
                size = math.prod(pool.kernel)
                number = T.int32(size) if pool.count_include_pad else covered[0]
                share = T.bind(T.float32(1.0) / T.Cast("float32", number))
                values = [T.bind(value * splat(share)) for value in values]
            store_floats(target, pixel.number * channels + channel, values, active)

        with instructions():
            window.over(step)
    return func.result()


def _accumulator(value: Expr) -> Buffer:
    buffer = T.alloc_buffer((LANES,), "float32", scope="local")
    T.buffer_store(buffer, value, [lanes(0)])
    return buffer


def _get(buffer: Buffer) -> Expr:
    return buffer[lanes(0)]


def _set(buffer: Buffer, value: Expr) -> None:
    T.buffer_store(buffer, value, [lanes(0)])


class _Pixel:
    """An output pixel: its number over all images, and where its window begins in the input."""

    def __init__(self, number: Expr, image: Expr, top: Expr, left: Expr) -> None:
        self.number, self.image, self.top, self.left = number, image, top, left


class _Window:
    """The loops of one function."""

    def __init__(self, spec: Conv2d | Pool2d, height: int, width: int, channels: int) -> None:
        self._spec, self._height, self._width, self._channels = spec, height, width, channels

    def over(self, body: Callable[[_Pixel, Expr, int], None]) -> None:
        """Emit `body(pixel, first channel, channels)` for every step, and for what is left."""
        spec = self._spec
        top, left, _, _ = spec.padding
        full, rest = divmod(self._channels, CHANNELS)
        with T.parallel(0, spec.batch * self._height) as line:
            image, row = T.bind(line // self._height), T.bind(line % self._height)
            first = T.bind(row * spec.stride[0] - top)
            with T.serial(0, self._width) as column:
                start = T.bind(column * spec.stride[1] - left)
                pixel = _Pixel(T.bind(line * self._width + column), image, first, start)
                if full:
                    with T.serial(0, full) as step:
                        body(pixel, T.bind(step * CHANNELS), CHANNELS)
                if rest:
                    body(pixel, T.int32(full * CHANNELS), rest)

    @contextmanager
    def taps(self, pixel: _Pixel) -> Iterator[tuple[Expr, Expr]]:
        """Over the positions of the window that lie in the input: which, and the first channel."""
        spec = self._spec
        rows, columns = spec.kernel
        with T.grid(rows, columns) as (y, x):
            line = T.bind(pixel.top + y * spec.dilation[0])
            column = T.bind(pixel.left + x * spec.dilation[1])
            inside = tirx.all(line >= 0, line < spec.in_height, column >= 0, column < spec.in_width)
            with T.If(inside):
                with T.Then():
                    at = (pixel.image * spec.in_height + line) * spec.in_width + column
                    yield T.bind(y * columns + x), T.bind(at * self._channels)
