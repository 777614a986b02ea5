"""From float32 in NCHW to u8 in NHWC and back.

Few channels: 64 pixels of every plane at a time, bytes put in turn by permutations. Many: squares
of 16 channels and 16 pixels are transposed. Where a plane or a pixel is no multiple of 16, the last
square overlaps the one before and writes the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, load, splat, store
from nmcompile.kernels.avx512_vnni.channels.frame import tasks
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    QUAD,
    constant_bytes,
    interleave,
    load_bytes,
    pack_bytes,
    pack_words,
    pick_bytes,
    pick_bytes_of_two,
    round_steps,
    spread,
    store_bytes,
)
from nmcompile.kernels.integers import Dequantise, Quantise
from nmcompile.kernels.prim_func import PrimFuncBuilder

FEW = 4  # channels up to which whole planes are interleaved


def emit_quantise(name: str, spec: Quantise, zero: int, low: int, high: int) -> object:
    """The TIR function (x, scale, out).

    Values beyond the limits become the limits, infinities too; NaN becomes `low`.
    """
    batch, channels, pixels = _planes(spec)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (spec.batch, spec.channels, spec.height, spec.width))
        scale = func.tensor("scale", (1,))
        out = func.tensor("out", (spec.batch, spec.height, spec.width, spec.channels), "uint8")
        x, out = func.flat(x), func.flat(out)

        def steps(channel: Expr, pixel: Expr, width: int) -> Expr:
            """Pixels of one plane as int32x16; `channel` counts over all images."""
            value = T.bind(load(x, channel * pixels + pixel, width) / splat(scale[0]))
            return round_steps(value, zero, low, high)

        def square(image: Expr, channel: Expr, pixel: Expr, height: int, width: int) -> None:
            plane = T.bind(image * channels + channel)
            dwords = []
            for first in range(0, LANES, QUAD):
                parts = [
                    steps(plane + (first + c), pixel, width) << splat(T.int32(8 * c))
                    for c in range(min(QUAD, height - first))
                ]
                zeros = splat(T.int32(0))
                dwords.append(T.bind(reduce(lambda a, b: a | b, parts, zeros)))
            for v, vector in enumerate(interleave(dwords, QUAD)):
                for part in range(QUAD):
                    if QUAD * part + v < width:
                        at = (image * pixels + pixel + (QUAD * part + v)) * channels + channel
                        lane = T.Shuffle([vector], list(range(LANES * part, LANES * (part + 1))))
                        store_bytes(out, at, lane, min(height, LANES))

        def group(image: Expr, pixel: Expr, count: int) -> None:
            planes = []
            for channel in range(channels):
                plane = T.bind(image * channels + channel)
                whole = [
                    steps(plane, pixel + first, min(LANES, count - first))
                    if first < count else splat(T.int32(0))
                    for first in range(0, BYTES, LANES)
                ]  # fmt: skip
                words = [T.bind(pack_words(whole[v], whole[v + 1])) for v in (0, 2)]
                planes.append(T.bind(pack_bytes(*words)))
            at = T.bind((image * pixels + pixel) * channels)
            for first in range(0, count * channels, BYTES):
                places = [divmod(first + i, channels) for i in range(BYTES)]
                value = _gather(planes, [(channel, _packed(p)) for p, channel in places])
                store_bytes(out, at + first, value, min(BYTES, count * channels - first))

        if channels > FEW:
            _over_squares(batch, channels, pixels, square)
        else:
            _over_groups(batch, channels, pixels, group)
    return func.result()


def emit_dequantise(name: str, spec: Dequantise, zero: int) -> object:
    """The TIR function (x, scale, out)."""
    batch, channels, pixels = _planes(spec)
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (spec.batch, spec.height, spec.width, spec.channels), "uint8")
        scale = func.tensor("scale", (1,))
        out = func.tensor("out", (spec.batch, spec.channels, spec.height, spec.width))
        x, out = func.flat(x), func.flat(out)

        def write(value: Expr, channel: Expr, pixel: Expr, width: int) -> None:
            """Pixels of one plane from int32x16; `channel` counts over all images."""
            real = T.Cast("float32x16", value - splat(T.int32(zero))) * splat(scale[0])
            store(out, channel * pixels + pixel, real, width)

        def square(image: Expr, channel: Expr, pixel: Expr, height: int, width: int) -> None:
            rows = []
            for v in range(QUAD):
                lanes = [
                    load_bytes(x, (image * pixels + pixel + p) * channels + channel, height, LANES)
                    if p < width else T.broadcast(T.int8(0), LANES)
                    for p in range(v, LANES, QUAD)
                ]  # fmt: skip
                rows.append(T.bind(T.Shuffle(lanes, list(range(BYTES)))))
            plane = T.bind(image * channels + channel)
            dwords = [T.reinterpret("int32x16", part) for part in interleave(rows, QUAD)]
            for c in range(min(height, LANES)):
                shifted = T.reinterpret("uint32x16", dwords[c // QUAD]) >> _splat_u32(
                    8 * (c % QUAD)
                )
                value = T.reinterpret("int32x16", shifted & _splat_u32(255))
                write(value, plane + c, pixel, width)

        def group(image: Expr, pixel: Expr, count: int) -> None:
            at = T.bind((image * pixels + pixel) * channels)
            vectors = [
                T.bind(load_bytes(x, at + first, min(BYTES, count * channels - first)))
                for first in range(0, count * channels, BYTES)
            ]
            for channel in range(channels):
                order = [(0, 0)] * BYTES
                for p in range(count):
                    order[_packed(p)] = divmod(p * channels + channel, BYTES)
                plane = T.bind(image * channels + channel)
                parts = spread(_gather(vectors, order))
                for first in range(0, count, LANES):
                    part = parts[first // LANES]
                    write(part, plane, pixel + first, min(LANES, count - first))

        if channels > FEW:
            _over_squares(batch, channels, pixels, square)
        else:
            _over_groups(batch, channels, pixels, group)
    return func.result()


def _planes(spec: Quantise | Dequantise) -> tuple[int, int, int]:
    """Batch, channels, pixels; where both layouts are the same, all values are pixels."""
    pixels = spec.height * spec.width
    if spec.channels == 1 or pixels == 1:
        return 1, 1, spec.batch * spec.channels * pixels
    return spec.batch, spec.channels, pixels


def _over_squares(
    batch: int, channels: int, pixels: int, body: Callable[[Expr, Expr, Expr, int, int], None]
) -> None:
    """Emit `body(image, channel, pixel, height, width)` for squares that cover every plane."""
    down, across = -(-channels // LANES), -(-pixels // LANES)
    with tasks(batch * across * down, batch * channels * pixels) as task:
        place = T.bind(task // down)
        channel = T.bind(T.min(task % down * LANES, max(channels - LANES, 0)))
        pixel = T.bind(T.min(place % across * LANES, max(pixels - LANES, 0)))
        height, width = min(channels, LANES), min(pixels, LANES)
        body(T.bind(place // across), channel, pixel, height, width)


def _over_groups(
    batch: int, channels: int, pixels: int, body: Callable[[Expr, Expr, int], None]
) -> None:
    """Emit `body(image, pixel, count)` for 64 pixels at a time and the rest of each image."""
    full, rest = divmod(pixels, BYTES)
    if full:
        with tasks(batch * full, batch * channels * pixels) as task:
            body(T.bind(task // full), T.bind(task % full * BYTES), BYTES)
    if rest:
        with T.serial(0, batch) as image:
            body(image, T.int32(full * BYTES), rest)


def _gather(vectors: Sequence[Expr], order: Sequence[tuple[int, int]]) -> Expr:
    """64 bytes of up to four vectors, each named by (vector, byte)."""
    halves = []
    for first in range(0, len(vectors), 2):
        own = [(v - first) * BYTES + byte if first <= v < first + 2 else 0 for v, byte in order]
        index = constant_bytes(own)
        pair = vectors[first : first + 2]
        picked = (
            pick_bytes(pair[0], index)
            if len(pair) == 1
            else pick_bytes_of_two(pair[0], index, pair[1])
        )
        halves.append(T.bind(picked))
    if len(halves) == 1:
        return halves[0]
    upper = constant_bytes([255 if v >= 2 else 0 for v, _ in order])
    return T.bind(T.Select(upper < T.broadcast(T.int8(0), BYTES), halves[1], halves[0]))


def _packed(pixel: int) -> int:
    """Where the packs put a pixel of four int32x16, and where `spread` finds one."""
    vector, lane = divmod(pixel, LANES)
    return LANES * (lane // QUAD) + QUAD * vector + lane % QUAD


def _splat_u32(value: int) -> Expr:
    return T.broadcast(T.uint32(value), LANES)
