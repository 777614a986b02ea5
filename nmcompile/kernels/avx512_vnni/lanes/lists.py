"""What lists keep of the bytes under a pixel, in the order in which kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD

Bytes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Blocks:
    """How a segment is cut into vectors of source bytes: the last one ends where the segment does.

    starts: where each block begins in its segment.
    """

    starts: tuple[int, ...]

    @classmethod
    def of(cls, segment: int) -> Blocks:
        """The blocks of so many bytes."""
        count = -(-segment // BYTES)
        return cls((*range(0, (count - 1) * BYTES, BYTES), max(0, segment - BYTES)))


def kept_channels(used: Flags, outputs: int) -> Flags:
    """Which bytes each `outputs` output channels read, (lists, bytes), of (out, kh * kw, bytes)."""
    read = np.asarray(used.any(axis=1))
    kept = np.zeros((-(-len(read) // outputs) * outputs, read.shape[1]), bool)
    kept[: len(read)] = read
    return np.asarray(kept.reshape(-1, outputs, read.shape[1]).any(axis=1))


NO_BLOCK = 127  # of a piece: what is behind its last byte becomes zero


@dataclass(frozen=True)
class Pieces:
    """What lists of bytes bring together: up to 64 kept bytes at a time.

    A list that keeps nothing has a piece of zeros: what is multiplied has to be a number.

    starts: the first piece of each list, and the end.
    sources: the first block of each piece, and the end.
    offsets: where each block begins, counted from the first byte under a pixel.
    index: for each byte of a piece where in its block it is, 64 of them, then which of the piece's
        blocks that is.
    """

    starts: npt.NDArray[np.int32]
    sources: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32]
    index: Bytes

    @classmethod
    def of(cls, kept: Flags) -> Pieces:
        """Of lists (lists, channels)."""
        blocks = Blocks.of(kept.shape[1])
        starts, sources = [0], [0]
        offsets: list[int] = []
        index = []
        for channels in kept:
            listed = np.flatnonzero(channels)
            for first in range(0, max(1, listed.size), BYTES):
                own = listed[first : first + BYTES]
                read, which = np.unique(own // BYTES, return_inverse=True)
                begins = np.asarray(blocks.starts)[read]
                behind = (0, BYTES - own.size)
                index.append(np.pad(own - begins[which], behind))
                index.append(np.pad(which, behind, constant_values=NO_BLOCK))
                offsets += begins.tolist()
                sources.append(len(offsets))
            starts.append(len(sources) - 1)
        return cls(
            np.asarray(starts, np.int32),
            np.asarray(sources, np.int32),
            # A kernel argument may not be empty.
            np.asarray(offsets or [0], np.int32),
            np.concatenate(index).astype(np.int8),
        )


def gathers_of(kept: Flags) -> tuple[npt.NDArray[np.float64], ...]:
    """Vectors of source bytes and of kept bytes for each list (lists, channels), as `Pieces`."""
    pieces = np.maximum(1, -(-np.count_nonzero(kept, axis=1) // BYTES))
    blocks = np.add.reduceat(kept, range(0, kept.shape[1], BYTES), axis=1)
    # Where one piece ends and the next begins, a block is read for both.
    sources = np.count_nonzero(blocks, axis=1) + pieces - 1
    return sources.astype(float), pieces.astype(float)


@dataclass(frozen=True)
class Quads:
    """The bytes that a list keeps, four at a time: first those that follow each other.

    following: how many quads do.
    segments: of each quad.
    starts: where it begins in the segment, or the block that it is picked of.
    places: where in the segment its bytes are, (quads, 4).
    real: 1, or 0 for bytes that fill a quad up: those of a number that it has already.
    """

    following: int
    segments: Indices
    starts: Indices
    places: Indices
    real: Bytes

    @classmethod
    def of(cls, kept: Flags, size: int) -> Quads:
        """Of bytes (segments, bytes) of numbers of so many bytes."""
        # Runs of kept bytes; those of one segment end with it.
        wide = kept.shape[1] + 1
        flat = np.pad(kept, ((0, 0), (0, 1))).reshape(-1)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
        begins, lengths = edges[::2], edges[1::2] - edges[::2]
        whole, rest = lengths // QUAD, lengths % QUAD
        following = np.repeat(begins, whole) + QUAD * _ranks(whole)
        left = np.repeat(begins + QUAD * whole, rest) + _ranks(rest)
        # The others, by the blocks that they lie in.
        blocks = np.asarray(Blocks.of(kept.shape[1]).starts)
        each = left // wide * len(blocks) + left % wide // BYTES
        counts = np.bincount(each, minlength=kept.shape[0] * len(blocks))
        per_block = -(-counts // QUAD)
        ranks = _ranks(counts)
        number = np.repeat(np.cumsum(per_block) - per_block, counts) + ranks // QUAD
        picked = np.full((int(per_block.sum()), QUAD), -1)
        picked[number, ranks % QUAD] = left % wide
        real = np.concatenate([np.ones((following.size, QUAD)), picked >= 0])
        picked = np.where(picked >= 0, picked, picked[:, np.arange(QUAD) % size])
        owner = np.repeat(np.arange(counts.size), per_block)
        return cls(
            following.size,
            np.concatenate([following // wide, owner // len(blocks)]),
            np.concatenate([following % wide, blocks[owner % len(blocks)]]),
            np.concatenate([following[:, None] % wide + np.arange(QUAD), picked]),
            real.astype(np.int8),
        )

    @classmethod
    def each(cls, kept: Flags, outputs: int, size: int) -> list[Quads]:
        """Of the lists of so many outputs, of bytes (out, segments, bytes) that each keeps."""
        lists = np.logical_or.reduceat(kept, range(0, len(kept), outputs), axis=0)
        return [cls.of(list_, size) for list_ in lists]

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.places)


def _ranks(counts: npt.NDArray[np.integer]) -> Indices:
    """0, 1, ... for each of some runs."""
    ranks: Indices = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
