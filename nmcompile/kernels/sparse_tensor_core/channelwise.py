"""What the other operators of a CNN need on a GPU: depthwise convolution, pooling, averages.

NHWC float16 in and out, float32 in between, channels rounded up to multiples of 8. They are bound
by memory, so a thread computes 8 channels of one pixel: it reads and writes 16 bytes at a time, and
the 32 threads of a warp touch memory that lies together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.prim_func import Buffer, Expr, PrimFuncBuilder
from nmcompile.kernels.sparse_tensor_core import ptx
from nmcompile.kernels.sparse_tensor_core.tiles import VECTOR, padded
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, GlobalAverage, Pool2d

THREADS = 128  # of a block: enough for every SM even where an image is 7x7
MAX_UNROLLED = 9  # taps; more would only make the code longer
LOWEST = -3.0e38  # below every float16

Window = Conv2d | Pool2d
Scalar = Callable[[Expr, Expr], Expr]


def emit_depthwise(name: str, conv: Conv2d, epilogue: Epilogue) -> Any:
    """The TIR function (x, weights, [bias], [residual], [out]).

    x (N, H, W, C), residual and out (N, OH, OW, C): float16. weights (taps, C), bias (C): float32.
    """
    channels = padded(conv.in_channels)
    out_shape = (conv.batch, conv.out_height, conv.out_width, channels)
    with PrimFuncBuilder(name) as func:
        T.func_attr({"tirx.is_scheduled": True})
        x = func.tensor("x", (conv.batch, conv.in_height, conv.in_width, channels), "float16")
        weights = func.tensor("weights", (conv.taps, channels))
        bias = func.tensor("bias", (channels,)) if epilogue.bias else None
        residual = func.tensor("residual", out_shape, "float16") if epilogue.residual else None
        out = None if epilogue.in_place else func.tensor("out", out_shape, "float16")
        source, factors = func.flat(x), func.flat(weights)
        added = None if residual is None else func.flat(residual)
        target = added if out is None else func.flat(out)
        with _vectors(conv.batch * conv.out_pixels, channels) as (pixel, channel):
            sums = _Vector("sums", 0.0)
            if bias is not None:
                _load_floats(sums.values, bias, channel)
            values, factor = _Vector("values"), _Vector("factor")
            with _taps(conv, conv.out_height, conv.out_width, channels, pixel) as (tap, index):
                values.load(source, index + channel)
                _load_floats(factor.values, factors, tap * channels + channel)
                sums.update(lambda a, b: a + b, values, factor)
            at = T.bind(pixel * channels + channel)
            if added is not None:
                values.load(added, at)
                sums.update(lambda a, b: a + b, values)
            sums.store(target, at, epilogue.activation)
    return func.result()


def emit_pool(name: str, pool: Pool2d) -> Any:
    """The TIR function (x, out): the maximum or the average of a window."""
    channels = padded(pool.channels)
    with PrimFuncBuilder(name) as func:
        T.func_attr({"tirx.is_scheduled": True})
        x = func.tensor("x", (pool.batch, pool.in_height, pool.in_width, channels), "float16")
        shape = (pool.batch, pool.out_height, pool.out_width, channels)
        out = func.tensor("out", shape, "float16")
        source, target = func.flat(x), func.flat(out)
        pixels = pool.batch * pool.out_height * pool.out_width
        with _vectors(pixels, channels) as (pixel, channel):
            best = _Vector("best", LOWEST if pool.kind == "max" else 0.0)
            counts = ptx.registers("counts", 1, "float32")
            T.buffer_store(counts, T.float32(0), [0])
            values = _Vector("values")
            combine: Scalar = T.max if pool.kind == "max" else (lambda a, b: a + b)
            with _taps(pool, pool.out_height, pool.out_width, channels, pixel) as (_, index):
                values.load(source, index + channel)
                best.update(combine, values)
                T.buffer_store(counts, counts[0] + T.float32(1), [0])
            if pool.kind == "average":
                divisor = T.max(counts[0], T.float32(1))
                if pool.count_include_pad:
                    divisor = _padded_taps(pool, pixel)
                best.scale(T.float32(1) / divisor)
            best.store(target, T.bind(pixel * channels + channel), Activation())
    return func.result()


def emit_global_average(name: str, average: GlobalAverage) -> Any:
    """The TIR function (x, out): the mean over all pixels, out (N, 1, 1, C)."""
    channels, pixels = padded(average.channels), average.height * average.width
    with PrimFuncBuilder(name) as func:
        T.func_attr({"tirx.is_scheduled": True})
        x = func.tensor("x", (average.batch, average.height, average.width, channels), "float16")
        out = func.tensor("out", (average.batch, 1, 1, channels), "float16")
        source, target = func.flat(x), func.flat(out)
        with _vectors(average.batch, channels) as (image, channel):
            sums, values = _Vector("sums", 0.0), _Vector("values")
            with T.serial(0, pixels) as pixel:
                values.load(source, (image * pixels + pixel) * channels + channel)
                sums.update(lambda a, b: a + b, values)
            sums.scale(T.float32(1.0 / pixels))
            sums.store(target, T.bind(image * channels + channel), Activation())
    return func.result()


@contextmanager
def _vectors(pixels: int, channels: int) -> Iterator[tuple[Expr, Expr]]:
    """One thread for each 8 channels of each pixel; yields the pixel and the first channel."""
    per_pixel = channels // VECTOR
    total = pixels * per_pixel
    with T.launch_thread("blockIdx.x", -(-total // THREADS)) as block:
        with T.launch_thread("threadIdx.x", THREADS) as thread:
            index = T.bind(block * THREADS + thread)
            with T.If(index < total):
                with T.Then():
                    yield T.bind(index // per_pixel), T.bind(index % per_pixel * VECTOR)


@contextmanager
def _taps(
    window: Window, out_height: int, out_width: int, channels: int, pixel: Expr
) -> Iterator[tuple[Expr, Expr]]:
    """The taps of an output pixel that lie in the image: their number, where they begin in x."""
    (top, left, _, _), (down, right) = window.padding, window.dilation
    rows, columns = window.kernel
    row = T.bind(pixel // out_width % out_height * window.stride[0] - top)
    column = T.bind(pixel % out_width * window.stride[1] - left)
    image = T.bind(pixel // (out_width * out_height))
    loop = ptx.unrolled if rows * columns <= MAX_UNROLLED else (lambda count: T.serial(0, count))
    with loop(rows * columns) as tap:
        y = T.bind(row + tap // columns * down)
        x = T.bind(column + tap % columns * right)
        inside = T.And(T.And(y >= 0, y < window.in_height), T.And(x >= 0, x < window.in_width))
        with T.If(inside):
            with T.Then():
                index = ((image * window.in_height + y) * window.in_width + x) * channels
                yield tap, T.bind(index)


def _padded_taps(pool: Pool2d, pixel: Expr) -> Expr:
    """How many taps lie in the image and its padding: rounding up, windows end beyond both."""
    (top, left, bottom, right), (down, across) = pool.padding, pool.dilation
    row = pixel // pool.out_width % pool.out_height * pool.stride[0] - top
    column = pixel % pool.out_width * pool.stride[1] - left
    rows = T.min(pool.kernel[0], (pool.in_height + bottom - row + down - 1) // down)
    columns = T.min(pool.kernel[1], (pool.in_width + right - column + across - 1) // across)
    return T.Cast("float32", rows * columns)


def _load_floats(target: Buffer, source: Buffer, first: Expr) -> None:
    at = T.bind(first)
    for half in range(2):
        ptx.load_global(target, half * 4, 4, source.ptr_to([at + half * 4]))


class _Vector:
    """Eight channels in the registers of a thread, as float32."""

    def __init__(self, name: str, value: float | None = None) -> None:
        self.values = ptx.registers(name, VECTOR, "float32")
        self._packed = ptx.registers(f"{name}_packed", VECTOR // 2)
        if value is not None:
            with ptx.unrolled(VECTOR) as i:
                T.buffer_store(self.values, T.float32(value), [i])

    def load(self, source: Buffer, first: Expr) -> None:
        """Read eight float16."""
        ptx.load_global(self._packed, 0, 4, source.ptr_to([T.bind(first)]))
        with ptx.unrolled(VECTOR // 2) as pair:
            for i, value in enumerate(ptx.unpack_half2(self._packed[pair])):
                T.buffer_store(self.values, value, [pair * 2 + i])

    def update(self, combine: Scalar, other: _Vector, factor: _Vector | None = None) -> None:
        """Self = combine(self, other [* factor])."""
        with ptx.unrolled(VECTOR) as i:
            value = other.values[i] if factor is None else other.values[i] * factor.values[i]
            T.buffer_store(self.values, combine(self.values[i], value), [i])

    def scale(self, factor: Expr) -> None:
        """Self *= factor."""
        with ptx.unrolled(VECTOR) as i:
            T.buffer_store(self.values, self.values[i] * factor, [i])

    def store(self, target: Buffer, first: Expr, activation: Activation) -> None:
        """Write the activation of the values as eight float16."""
        with ptx.unrolled(VECTOR // 2) as pair:
            results = [ptx.activate(self.values[pair * 2 + i], activation) for i in range(2)]
            T.buffer_store(self._packed, ptx.pack_half2(*results), [pair])
        ptx.store_global(target.ptr_to([first]), self._packed, 0)
