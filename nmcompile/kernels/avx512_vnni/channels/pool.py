"""Pooling, 64 channels at a time: the largest value of a window, or its mean."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, lanes, splat
from nmcompile.kernels.avx512_vnni.channels.frame import (
    declare_ending,
    over_blocks,
    write_sums,
)
from nmcompile.kernels.avx512_vnni.channels.window import Taps, over_pixels
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    spread,
    store_bytes,
    unpack,
)
from nmcompile.kernels.integers import IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Pool2d

WORDS = 257  # bytes whose sum is sure to fit an unsigned word


def emit_max_pool(name: str, pool: Pool2d) -> object:
    """The TIR function (x, out); 0, which taps outside of the image count as, is never larger."""
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.in_height, pool.in_width, pool.channels), "uint8")
        out = func.tensor("out", _out_shape(pool), "uint8")
        x, out = func.flat(x), func.flat(out)
        whole = T.ramp(0, 1, BYTES)

        def pixel(image: Expr, place: Expr, taps: Taps) -> None:
            at = T.bind((image * (pool.out_height * pool.out_width) + place) * pool.channels)

            def block(channel: Expr, active: int) -> None:
                best = T.alloc_buffer((BYTES,), "uint8", scope="local")
                T.buffer_store(best, T.broadcast(T.uint8(0), BYTES), [whole])

                def tap(value: Expr) -> None:
                    larger = T.max(best[whole], T.reinterpret("uint8x64", value))
                    T.buffer_store(best, larger, [whole])

                taps.visit(channel, active, tap)
                store_bytes(out, at + channel, best[whole], active)

            over_blocks(pool.channels, block)

        over_pixels(pool, x, pixel)
    return func.result()


def emit_average_pool(name: str, pool: Pool2d, epilogue: IntegerEpilogue) -> object:
    """The TIR function (x, offset, scale, steps, [residual], [out]).

    Offset and scale are of output pixels: windows at the border hold fewer taps.
    """
    pixels = pool.out_height * pool.out_width
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (pool.batch, pool.in_height, pool.in_width, pool.channels), "uint8")
        ending = declare_ending(func, pixels, _out_shape(pool), epilogue)
        x = func.flat(x)

        def pixel(image: Expr, place: Expr, taps: Taps) -> None:
            offset, scale = T.bind(splat(ending.offset[place])), T.bind(splat(ending.scale[place]))
            start = T.bind((image * pixels + place) * pool.channels)

            def block(channel: Expr, active: int) -> None:
                sums = _sums(taps, channel, active)
                at = T.bind(start + channel)
                write_sums(ending, at, sums, offset, scale, active)

            over_blocks(pool.channels, block)

        over_pixels(pool, x, pixel)
    return func.result()


def _sums(taps: Taps, channel: Expr, active: int) -> list[Expr]:
    """Sums of 64 channels over a window, in the order of `unpack`ed bytes."""
    zero = T.broadcast(T.int8(0), BYTES)
    small = taps.pool.kernel[0] * taps.pool.kernel[1] <= WORDS
    kind, width = ("int16", 2 * LANES) if small else ("int32", LANES)
    sums = T.alloc_buffer((BYTES,), kind, scope="local")
    places = [T.ramp(first, 1, width) for first in range(0, BYTES, width)]

    def tap(value: Expr) -> None:
        if small:
            parts = [unpack(value, zero, high=high, size=1) for high in (False, True)]
        else:
            parts = spread(value)
        for place, part in zip(places, parts, strict=True):
            T.buffer_store(sums, sums[place] + T.reinterpret(f"{kind}x{width}", part), [place])

    for place in places:
        T.buffer_store(sums, T.broadcast(T.Cast(kind, T.int32(0)), width), [place])
    taps.visit(channel, active, tap)
    if not small:
        return [T.bind(sums[lanes(first)]) for first in range(0, BYTES, LANES)]
    halves = [T.bind(T.reinterpret("int8x64", sums[place])) for place in places]
    return [
        T.bind(T.reinterpret("int32x16", unpack(half, zero, high=high, size=2)))
        for half in halves
        for high in (False, True)
    ]


def _out_shape(pool: Pool2d) -> tuple[int, ...]:
    return (pool.batch, pool.out_height, pool.out_width, pool.channels)
