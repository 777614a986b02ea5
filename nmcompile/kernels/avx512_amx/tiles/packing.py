"""Weights as the tiles that meet those of activations, and the lists of what 1xN keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_amx.tiles.config import TilesConfig
from nmcompile.kernels.avx512_amx.tiles.layout import Steps
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.packing import Blocks
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.spec import Conv2d

NO_BLOCK = 127  # of a piece: what is behind its last byte is zero
Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class PackedTiles:
    """Arrays of one convolution, in the order of the function's arguments.

    weights: int8, by group of outputs, segment, step, vector of outputs: tiles of depth / 4 rows of
        16 outputs of four bytes.
    starts: int32, gathered only: the first piece of each list, and the end; a piece is up to 64
        kept bytes.
    sources: int32, the first block of each piece, and the end.
    offsets: int32, where each block begins, counted from the first byte under a pixel.
    index: int8, for each byte of a piece where in its block it is, 64 of them, then which of the
        piece's blocks that is.
    """

    weights: Bytes
    starts: Array | None = None
    sources: Array | None = None
    offsets: Array | None = None
    index: Array | None = None

    @property
    def arrays(self) -> dict[str, Array]:
        """By argument name."""
        named = {
            "weights": self.weights,
            "starts": self.starts,
            "sources": self.sources,
            "offsets": self.offsets,
            "index": self.index,
        }
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True)
class Gathering:
    """How many bytes lists bring together for each pixel.

    pitch: bytes from one gathered pixel to the next.
    by_row: whether the pixels of a kernel's row are one segment; else each is.
    columns: of the kernel.
    """

    pitch: int
    by_row: bool
    columns: int

    @classmethod
    def of(cls, conv: Conv2d, kept: npt.NDArray[np.bool_]) -> Gathering:
        """Of lists (lists, channels).

        A single piece is as short as its longest list, so that a row of the kernel is one run.
        """
        longest = max(1, int(np.count_nonzero(kept, axis=1).max()))
        single = longest <= BYTES
        pitch = -(-longest // QUAD) * QUAD if single else -(-longest // BYTES) * BYTES
        return cls(pitch, single and conv.dilation[1] == 1, conv.kernel[1])

    @property
    def steps(self) -> Steps:
        """Of a segment of the longest list; others have steps for each of their pieces."""
        return Steps.of(self.pitch * (self.columns if self.by_row else 1))


def pack_dense(positions: Bytes, reading: Reading, config: TilesConfig) -> PackedTiles:
    """Pack the bytes of a weight, (out, kh * kw, in)."""
    segments = positions.reshape(len(positions), -1, reading.segment)
    return PackedTiles(_tiles_of(segments, config.vectors))


def _tiles_of(segments: Bytes, vectors: int) -> Bytes:
    """Weights (out, segments, bytes) by group of `vectors`, segment, step, vector, quad, lane."""
    outputs, count, size = segments.shape
    steps = Steps.of(size)
    whole = -(-outputs // LANES)
    padded = np.zeros((whole * LANES, count, max(size, steps.depth)), np.int8)
    padded[:outputs, :, :size] = segments
    parts, done = [], 0
    for start in steps.starts:
        part = padded[:, :, start : start + steps.depth].copy()
        part[:, :, : done - start] = 0
        done = start + steps.depth
        parts.append(part)
    # (vector, lane, segment, step, quad, byte)
    lanes = np.stack(parts, axis=2).reshape(whole, LANES, count, steps.count, -1, QUAD)
    groups = OutputGroups.of(outputs, vectors)
    last = (groups.count - 1) * vectors
    pieces = []
    for part, wide in ((lanes[:last], vectors), (lanes[last:], groups.last)):
        shaped = part.reshape(len(part) // wide, wide, *part.shape[1:])
        pieces.append(shaped.transpose(0, 3, 4, 1, 5, 2, 6).reshape(-1))
    return np.concatenate(pieces)


def pack_gathered(
    positions: Bytes, kept: npt.NDArray[np.bool_], conv: Conv2d, config: TilesConfig
) -> PackedTiles:
    """Pack the bytes of a weight, (out, kh * kw, in), of which lists (lists, in) keep some."""
    gathering = Gathering.of(conv, kept)
    blocks = Blocks.of(conv.in_channels)
    starts, sources = [0], [0]
    offsets: list[int] = []
    index, pieces = [], []
    for number, channels in enumerate(kept):
        listed = np.flatnonzero(channels)
        # A list that keeps nothing has a piece of zeros: what it multiplies has to be a number.
        for first in range(0, max(1, listed.size), BYTES):
            own = listed[first : first + BYTES]
            read, which = np.unique(own // BYTES, return_inverse=True)
            begins = np.asarray(blocks.starts)[read]
            place = own - begins[which]
            behind = (0, BYTES - own.size)
            index += [np.pad(place, behind), np.pad(which, behind, constant_values=NO_BLOCK)]
            offsets += begins.tolist()
            sources.append(len(offsets))
        starts.append(len(sources) - 1)
        outputs = slice(number * config.list_outputs, (number + 1) * config.list_outputs)
        part = positions[outputs][:, :, listed]
        count = starts[-1] - starts[-2]
        width = gathering.pitch if gathering.pitch <= BYTES else count * BYTES
        part = np.pad(part, ((0, 0), (0, 0), (0, width - listed.size)))
        if gathering.by_row:
            part = part.reshape(len(part), conv.kernel[0], -1)
        pieces.append(_tiles_of(part, config.vectors))
    return PackedTiles(
        np.concatenate(pieces),
        starts=np.asarray(starts, np.int32),
        sources=np.asarray(sources, np.int32),
        # A kernel argument may not be empty.
        offsets=np.asarray(offsets or [0], np.int32),
        index=np.concatenate(index).astype(np.int8),
    )
