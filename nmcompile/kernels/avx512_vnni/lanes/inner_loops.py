"""The inner loops: bytes of a tile's pixels times weights, in lanes that pick or that share them.

Loops begin at 0: TVM takes a wrong first value for one that begins where a buffer says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, lanes, load
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    QUAD,
    broadcast_quad,
    load_bytes,
    pick_bytes,
    prefetch_line,
)

AHEAD = 4096  # bytes between the weights that are multiplied and those that are asked for

Dot = Callable[[Expr, Expr, Expr], Expr]
"""16 sums, and four bytes in each lane of activations and of weights, to sums."""


class Sums:
    """pixels x vectors registers of 16 sums."""

    def __init__(self, pixels: int, vectors: int, dtype: str, dot: Dot) -> None:
        self.pixels, self.vectors, self.dtype = pixels, vectors, dtype
        self._dot = dot
        # One buffer of a single vector each, so that LLVM turns them into registers.
        self._all = [
            [T.alloc_buffer((LANES,), dtype, scope="local") for _ in range(vectors)]
            for _ in range(pixels)
        ]

    def get(self, t: int, u: int) -> Expr:
        """Vector u of pixel t."""
        return self._all[t][u][lanes(0)]

    def start(self, rows: Buffer, first: Expr) -> None:
        """Begin with the values of the output channels from `first` on."""
        for u in range(self.vectors):
            value = T.bind(load(rows, first + u * LANES))
            for t in range(self.pixels):
                T.buffer_store(self._all[t][u], value, [lanes(0)])

    def add(self, t: int, u: int, x: Expr, weights: Expr) -> None:
        """Add products of four bytes in each lane."""
        T.buffer_store(self._all[t][u], self._dot(self.get(t, u), x, weights), [lanes(0)])


@dataclass(frozen=True)
class Lists:
    """What groups of outputs pick; see `PackedWeights`."""

    starts: Buffer
    offsets: Buffer
    index: Buffer
    quads: Buffer | None = None


@dataclass(frozen=True)
class Pixels:
    """The pixels of a tile: where the first one's bytes begin, and how far behind the others do.

    active: bytes of a vector that may be read.
    """

    source: Buffer
    base: Expr
    offsets: tuple[int, ...]
    active: int = BYTES

    @staticmethod
    def offsets_of(pixels: int, pitch: int, lines: int, down: int) -> tuple[int, ...]:
        """Of so many lines of pixels."""
        return tuple(line * down + t * pitch for line in range(lines) for t in range(pixels))


@dataclass(frozen=True)
class Window:
    """Runs of bytes under one output pixel: how many, how far apart, and how many quads each has.

    Two levels, as a kernel has rows and columns.
    """

    rows: int
    columns: int
    down: Expr
    right: Expr
    quads: Expr


def add_picked(
    sums: Sums,
    pixels: Pixels,
    lists: Lists,
    group: Expr,
    weights: Buffer,
    origin: Expr,
) -> None:
    """Per block of 64 bytes and quad of a list: every lane picks four of them.

    Args:
        sums: of the tile.
        pixels: of the tile.
        lists: of the layer.
        group: of outputs.
        weights: of the layer.
        origin: the number of vectors of weights before the group's, less those of its quads if all
            groups were as wide.
    """
    start = T.bind(lists.starts[group])
    with T.serial(0, lists.starts[group + 1] - start) as nth:
        block = T.bind(start + nth)
        at = T.bind(pixels.base + lists.offsets[block])
        x = [
            T.bind(load_bytes(pixels.source, at + offset, pixels.active))
            for offset in pixels.offsets
        ]
        assert lists.quads is not None
        begin = T.bind(lists.quads[block])
        stream = T.bind(origin + begin * sums.vectors)
        with T.serial(0, lists.quads[block + 1] - begin) as quad:
            row = T.bind(stream + quad * sums.vectors)
            for u in range(sums.vectors):
                place = T.bind((row + u) * BYTES)
                index, weight = (T.bind(load_bytes(b, place)) for b in (lists.index, weights))
                for stream in (lists.index, weights):
                    prefetch_line(stream, place + AHEAD)
                for t, value in enumerate(x):
                    sums.add(t, u, pick_bytes(value, index), weight)


def add_listed(
    sums: Sums, pixels: Pixels, lists: Lists, group: Expr, weights: Buffer, origin: Expr
) -> None:
    """Per quad of a list that all outputs of a group share: the same four bytes in all lanes.

    First those that follow each other, then those that are picked of 64. Arguments as `add_picked`.
    """
    first, middle, last = (T.bind(lists.starts[group * 2 + k]) for k in range(3))

    def vectors_of(quad: Expr) -> list[Expr]:
        place = T.bind((origin + quad * sums.vectors) * BYTES)
        for u in range(sums.vectors):
            prefetch_line(weights, place + (AHEAD + u * BYTES))
        return [T.bind(load_bytes(weights, place + u * BYTES)) for u in range(sums.vectors)]

    with T.serial(0, middle - first) as nth:
        quad = T.bind(first + nth)
        at = T.bind(pixels.base + lists.offsets[quad])
        vectors = vectors_of(quad)
        for t, offset in enumerate(pixels.offsets):
            four = T.bind(broadcast_quad(pixels.source, at + offset))
            for u, vector in enumerate(vectors):
                sums.add(t, u, four, vector)
    with T.serial(0, last - middle) as nth:
        quad = T.bind(middle + nth)
        at = T.bind(pixels.base + lists.offsets[quad])
        index = T.bind(broadcast_quad(lists.index, quad * QUAD))
        vectors = vectors_of(quad)
        for t, offset in enumerate(pixels.offsets):
            value = load_bytes(pixels.source, at + offset, pixels.active)
            four = T.bind(pick_bytes(value, index))
            for u, vector in enumerate(vectors):
                sums.add(t, u, four, vector)


def add_shared(sums: Sums, pixels: Pixels, window: Window, weights: Buffer, start: Expr) -> None:
    """Per run of bytes and quad: four bytes of each pixel in all lanes.

    `start` is where the weights of the outputs begin.
    """
    quads = window.quads
    with T.grid(window.rows, window.columns, quads) as (y, x, quad):
        at = T.bind(pixels.base + y * window.down + x * window.right + quad * QUAD)
        step = (y * window.columns + x) * quads + quad
        where = T.bind(start + step * (BYTES * sums.vectors))
        vectors = [T.bind(load_bytes(weights, where + u * BYTES)) for u in range(sums.vectors)]
        for u in range(sums.vectors):
            prefetch_line(weights, where + (AHEAD + u * BYTES))
        for t, offset in enumerate(pixels.offsets):
            four = T.bind(broadcast_quad(pixels.source, at + offset))
            for u, vector in enumerate(vectors):
                sums.add(t, u, four, vector)
