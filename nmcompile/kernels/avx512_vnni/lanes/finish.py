"""What becomes of the sums of a tile: requantised four vectors at a time, and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    LONG_ACTIVATIONS,
    Buffer,
    Expr,
    lanes,
    load,
    store,
)
from nmcompile.kernels.avx512_vnni.emit import store_bytes, widen_bytes
from nmcompile.kernels.avx512_vnni.lanes.inner_loops import Sums
from nmcompile.kernels.avx512_vnni.requantise import Requantiser

FOUR = 4  # vectors that one pack makes 64 bytes of


class Finisher(Protocol):
    """What turns sums into a layer's output and stores it."""

    @property
    def channels(self) -> int:
        """Elements from one output pixel to the next."""

    @property
    def long(self) -> bool:
        """Whether a pixel takes so many instructions that it should be emitted once."""

    def columns(self, first: Expr, vectors: int) -> list[Expr]:
        """What is known of vectors of outputs from `first` on, whatever the pixel."""

    def pixels(
        self,
        pixels: int,
        sums: Callable[[int, int], Expr],
        columns: Sequence[Expr],
        at: Expr,
        outputs: int,
    ) -> None:
        """Write a few pixels that follow each other.

        Args:
            pixels: how many.
            sums: vector u of pixel t.
            columns: of each vector.
            at: where the first pixel's first output goes.
            outputs: output channels from there on that are real.
        """


def write(finish: Finisher, sums: Sums, pixel: Expr, first: Expr, outputs: int) -> None:
    """Write one tile.

    Args:
        finish: what its sums become.
        sums: of the tile.
        pixel: the first output pixel, over all images.
        first: the first output channel.
        outputs: output channels from there on that are real.
    """
    pixels, vectors = sums.pixels, sums.vectors
    columns = finish.columns(first, vectors)
    if not finish.long:
        at = T.bind(pixel * finish.channels + first)
        finish.pixels(pixels, sums.get, columns, at, outputs)
        return
    # Written out for every vector, a long activation would take LLVM seconds.
    rest = T.alloc_buffer((pixels * vectors * LANES,), sums.dtype, scope="local")
    for t in range(pixels):
        for u in range(vectors):
            T.buffer_store(rest, sums.get(t, u), [lanes((t * vectors + u) * LANES)])
    with T.serial(0, pixels) as row:
        at = T.bind((pixel + row) * finish.channels + first)
        get = lambda _, u: rest[lanes((row * vectors + u) * LANES)]  # noqa: E731
        finish.pixels(1, get, columns, at, outputs)


@dataclass(frozen=True)
class Finish:
    """Requantises tiles of one function.

    scale: float32 per output channel, padded to whole vectors.
    late_bias: likewise, where there is one.
    channels: of one output pixel.
    """

    requantiser: Requantiser
    scale: Buffer
    late_bias: Buffer | None
    residual: Buffer | None
    out: Buffer
    channels: int

    @property
    def long(self) -> bool:
        """See `Finisher`."""
        return self.requantiser.epilogue.activation.kind in LONG_ACTIVATIONS

    def columns(self, first: Expr, vectors: int) -> list[Expr]:
        """The scales of vectors of outputs from `first` on, and their late biases."""
        places = [first + u * LANES for u in range(vectors)]
        held = [b for b in (self.scale, self.late_bias) if b is not None]
        return [tuple(T.bind(load(buffer, at)) for buffer in held) for at in places]

    def pixels(
        self,
        pixels: int,
        sums: Callable[[int, int], Expr],
        columns: Sequence[Expr],
        at: Expr,
        outputs: int,
    ) -> None:
        """See `Finisher`."""
        places = [(t, u) for t in range(pixels) for u in range(len(columns))]

        def finished(t: int, u: int) -> Expr:
            residual = None
            if self.residual is not None:
                where = at + (t * self.channels + u * LANES)
                real = self.requantiser.epilogue.real_residual
                read = load if real else widen_bytes
                residual = T.bind(read(self.residual, where, outputs - u * LANES))
            scale, *late_bias = columns[u]
            return self.requantiser.real(sums(t, u), scale, residual, *late_bias)

        if self.requantiser.epilogue.out == "float32":
            for t, u in places:
                where = at + (t * self.channels + u * LANES)
                store(self.out, where, finished(t, u), outputs - u * LANES)
            return
        for i in range(0, len(places), FOUR):
            part = places[i : i + FOUR]
            values = [finished(t, u) for t, u in part]
            packed = self.requantiser.pack(values + values[-1:] * (FOUR - len(part)))
            for start, count in _runs(part):
                t, u = part[start]
                width = count * LANES
                piece = packed
                if count < FOUR:
                    taken = list(range(start * LANES, start * LANES + width))
                    piece = T.Shuffle([packed], taken)
                where = at + (t * self.channels + u * LANES)
                store_bytes(self.out, where, piece, outputs - u * LANES)


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Start and length of runs that one store can write: 4, 2 or 1 vectors of one pixel."""
    start = 0
    while start < len(places):
        pixel = places[start][0]
        length = sum(place[0] == pixel for place in places[start:])
        length = FOUR if length == FOUR else min(length, 2)
        yield start, length
        start += length
