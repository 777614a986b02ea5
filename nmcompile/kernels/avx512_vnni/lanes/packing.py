"""Weights in the order in which the lanes meet them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, OutputGroups, PackedSizes
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class PackedWeights:
    """Arrays of one convolution, in the order of the function's arguments.

    weights: int8. Dense: per group of outputs, segment and quad, per vector of the group 16 lanes
        of four weights. Picked: per group of outputs, per block with work, per quad: for each
        vector of the group 64 indices into the block, then for each vector 64 weights.
    starts: int32, picked only: the first block of each group of outputs, and the end.
    offsets: int32, picked only: where each block begins, counted from the first byte under a pixel.
    quads: int32, picked only: the first quad of each block, and the end.
    """

    weights: Bytes
    starts: npt.NDArray[np.int32] | None = None
    offsets: npt.NDArray[np.int32] | None = None
    quads: npt.NDArray[np.int32] | None = None

    @property
    def sizes(self) -> PackedSizes:
        """Lengths, as the emitter wants them."""
        return PackedSizes(self.weights.size, 0 if self.offsets is None else self.offsets.size)

    @property
    def arrays(self) -> dict[str, Array]:
        """By argument name."""
        named = {
            "weights": self.weights,
            "starts": self.starts,
            "offsets": self.offsets,
            "quads": self.quads,
        }
        return {name: array for name, array in named.items() if array is not None}


def pack_lanes(weight: Bytes, reading: Reading, config: LanesConfig) -> PackedWeights:
    """Pack an OIHW weight of shape (out, in / groups, kh, kw)."""
    if config.method == "dense":
        return PackedWeights(_pack_dense(weight, reading, config))
    return _pack_picked(weight, reading, config)


def segments_of(weight: Bytes, reading: Reading) -> Bytes:
    """An OIHW weight as (out, segments, bytes), zeros where an output has other groups' bytes."""
    conv = reading.conv
    rows = weight.transpose(0, 2, 3, 1)
    if conv.groups > 1 and not reading.by_group:
        spread = np.zeros((conv.groups, conv.group_out, *conv.kernel, conv.in_channels), np.int8)
        parts = rows.reshape(conv.groups, conv.group_out, *conv.kernel, conv.group_in)
        for group in range(conv.groups):
            first = group * conv.group_in
            spread[group, ..., first : first + conv.group_in] = parts[group]
        rows = spread
    return np.ascontiguousarray(rows).reshape(conv.out_channels, -1, reading.segment)


def _pack_dense(weight: Bytes, reading: Reading, config: LanesConfig) -> Bytes:
    segments = segments_of(weight, reading)
    outputs, count, size = segments.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, count, reading.quads * QUAD), np.int8)
    padded[:outputs, :, :size] = segments
    # (vector, lane, segment, quad, byte)
    lanes = padded.reshape(-1, LANES, count, reading.quads, QUAD)
    groups = OutputGroups.of(outputs, config.vectors)
    whole = (groups.count - 1) * config.vectors
    pieces = []
    for part, vectors in ((lanes[:whole], config.vectors), (lanes[whole:], groups.last)):
        shaped = part.reshape(-1, vectors, *part.shape[1:])
        pieces.append(shaped.transpose(0, 3, 4, 1, 2, 5).reshape(-1))
    return np.concatenate(pieces)


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


def quads_per_block(segments: Bytes, vectors: int) -> npt.NDArray[np.int64]:
    """Quads of each block for each group of outputs: (groups, segments, blocks).

    As many as the output of the group needs that has most weights there.
    """
    outputs, _, size = segments.shape
    edges = range(0, size, BYTES)
    kept = np.add.reduceat((segments != 0).astype(np.int32), edges, axis=2)
    padded = np.zeros((-(-outputs // (LANES * vectors)) * LANES * vectors, *kept.shape[1:]), int)
    padded[:outputs] = -(-kept // QUAD)
    most: npt.NDArray[np.int64] = padded.reshape(-1, vectors * LANES, *kept.shape[1:]).max(axis=1)
    return most


def _pack_picked(weight: Bytes, reading: Reading, config: LanesConfig) -> PackedWeights:
    segments = segments_of(weight, reading)
    blocks = Blocks.of(reading.segment)
    vectors = config.vectors
    needed = quads_per_block(segments, vectors)
    groups = OutputGroups.of(len(segments), vectors)
    group, segment, block = np.nonzero(needed)  # the blocks with work, in order
    counts = needed[group, segment, block]
    quads = np.concatenate([[0], np.cumsum(counts)])
    starts = np.searchsorted(group, np.arange(groups.count + 1))
    first_bytes = np.asarray(reading.segments)[segment] + np.asarray(blocks.starts)[block]
    first_quads = np.zeros(needed.shape, np.int64)
    first_quads[group, segment, block] = quads[:-1]

    output, where, place = np.nonzero(segments)
    in_block = place // BYTES
    # The weights of one output in one block follow each other: count from the first of them.
    run = (output * segments.shape[1] + where) * len(blocks.starts) + in_block
    begins = np.flatnonzero(np.diff(run, prepend=-1))
    rank = np.arange(run.size) - np.repeat(begins, np.diff(begins, append=run.size))
    quad = first_quads[output // (vectors * LANES), where, in_block] + rank // QUAD
    # Streams in vectors of 64 bytes: the last group's quads may have fewer of them.
    boundary = quads[starts[-2]]
    last = output // (vectors * LANES) == groups.count - 1
    width = np.where(last, groups.last, vectors)
    base = np.where(last, 2 * (boundary * vectors + (quad - boundary) * width), 2 * quad * width)
    vector = output // LANES % vectors
    lane = output % LANES * QUAD + rank % QUAD
    size = 2 * (boundary * vectors + (quads[-1] - boundary) * groups.last)
    stream = np.zeros((max(int(size), 1), BYTES), np.int8)
    stream[base + vector, lane] = place - np.asarray(blocks.starts)[in_block]
    stream[base + width + vector, lane] = segments[output, where, place]
    # A kernel argument may not be empty: an all-zero layer still gets one element.
    offsets = first_bytes if first_bytes.size else np.zeros(1)
    return PackedWeights(
        stream.reshape(-1),
        starts.astype(np.int32),
        offsets.astype(np.int32),
        (quads if first_bytes.size else np.zeros(2)).astype(np.int32),
    )
