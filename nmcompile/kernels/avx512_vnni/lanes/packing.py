"""Weights in the order in which the lanes meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.lists import (
    Blocks,
    Flags,
    Indices,
    Pieces,
    Quads,
    kept_channels,
)
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.problem import arrays_of
from nmcompile.kernels.spec import Conv2d

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.int8]
Weights = TypeVar("Weights", npt.NDArray[np.int8], npt.NDArray[np.float32])
Each = TypeVar("Each", npt.NDArray[np.int8], npt.NDArray[np.bool_])


@dataclass(frozen=True)
class PackedWeights:
    """Arrays of one convolution, in the order of the function's arguments.

    weights: int8. Dense: per group of outputs, segment and quad, per vector of the group 16 lanes
        of four weights. Gathered: likewise, kernel positions for segments, and quads of kept bytes.
        Listed: likewise, all quads of a list for a segment.
        Picked: per group of outputs, per block with work, per quad: for each vector of the group
        64 weights.
    starts: int32. Picked: the first block of each group of outputs, and the end. Gathered: the
        first piece of each list, and the end; a piece is 64 kept bytes. Listed: of each group of
        outputs the first quad whose bytes follow each other, and the first of others; the end.
    sources: int32, gathered only: the first block of each piece, and the end.
    offsets: int32, where each block begins, counted from the first byte under a pixel. Listed:
        likewise of each quad, or of the block it is picked of.
    index: int8. Gathered: for each byte of a piece where in its block it is, 64 of them, then
        which of the piece's blocks that is. Picked: for each of the weights where in its block the
        byte is. Listed: likewise, four for each quad.
    quads: int32. Picked: the first quad of each block, and the end. Gathered: the first quad of
        each list, all positions counted as one, and the end.
    gathered: bytes from one gathered pixel to the next; an odd number of cache lines.
    """

    weights: Bytes
    starts: Array | None = None
    sources: Array | None = None
    offsets: Array | None = None
    index: Array | None = None
    quads: Array | None = None
    gathered: int = 0

    @property
    def arrays(self) -> dict[str, Array]:
        """By argument name."""
        return arrays_of(self)


def pack_lanes(
    positions: Bytes, used: Flags, reading: Reading, config: LanesConfig, size: int
) -> PackedWeights:
    """Pack the bytes of a weight.

    Args:
        positions: (out, kh * kw, in).
        used: which of them belong to weights that are not zero.
        reading: of the convolution.
        config: of its tiles.
        size: bytes of one weight.
    """
    if config.method == "dense":
        segments = segments_of(positions, reading)
        return PackedWeights(_groups_of(segments, config.vectors, reading.quads))
    if config.method == "gathered":
        return _pack_gathered(positions, used, config)
    if config.method == "listed":
        return _pack_listed(positions, used, reading, config, size)
    return _pack_picked(positions, used, reading, config, size)


def positions_of(weight: Weights, conv: Conv2d) -> Weights:
    """An OIHW weight as (out, kh * kw, in), zeros where an output has other groups' channels."""
    lines = weight.transpose(0, 2, 3, 1)
    rows: Weights = lines.reshape(conv.groups, conv.group_out, conv.taps, -1)
    if conv.groups == 1:
        return np.ascontiguousarray(rows[0])
    spread = np.zeros((*rows.shape[:3], conv.in_channels), weight.dtype)
    for group, part in enumerate(rows):
        spread[group, ..., group * conv.group_in : (group + 1) * conv.group_in] = part
    return spread.reshape(conv.out_channels, conv.taps, conv.in_channels)


def segments_of(positions: Each, reading: Reading) -> Each:
    """What is known of bytes (out, kh * kw, in), as (out, segments, bytes)."""
    conv = reading.conv
    rows: Each = positions
    if reading.by_group:
        parted = rows.reshape(conv.groups, conv.group_out, conv.taps, conv.groups, conv.group_in)
        own = np.arange(conv.groups)
        rows = parted[own, :, :, own]
    return rows.reshape(conv.out_channels, -1, reading.segment)


def _groups_of(segments: Bytes, vectors: int, quads: int) -> Bytes:
    """Weights (out, segments, bytes) by group of `vectors`, segment, quad, vector and lane."""
    outputs, count, size = segments.shape
    whole = -(-outputs // LANES)
    padded = np.zeros((whole * LANES, count, quads * QUAD), np.int8)
    padded[:outputs, :, :size] = segments
    # (vector, lane, segment, quad, byte)
    lanes = padded.reshape(whole, LANES, count, quads, QUAD)
    groups = OutputGroups.of(outputs, vectors)
    last = (groups.count - 1) * vectors
    pieces = []
    for part, wide in ((lanes[:last], vectors), (lanes[last:], groups.last)):
        shaped = part.reshape(len(part) // wide, wide, *part.shape[1:])
        pieces.append(shaped.transpose(0, 3, 4, 1, 2, 5).reshape(-1))
    return np.concatenate(pieces)


def quads_of(used: Flags) -> npt.NDArray[np.uint8]:
    """Quads that each output needs of each block, (out, segments, blocks), of used bytes."""
    edges = range(0, used.shape[2], BYTES)
    kept = np.add.reduceat(used.view(np.uint8), edges, axis=2)
    quads: npt.NDArray[np.uint8] = (kept + np.uint8(QUAD - 1)) // np.uint8(QUAD)
    return quads


def quads_per_group(quads: npt.NDArray[np.uint8], vectors: int) -> npt.NDArray[np.int64]:
    """Quads of each block for each group of outputs: (groups, segments, blocks).

    As many as the output of the group needs that has most weights there; `quads` are of each.
    """
    size = vectors * LANES
    firsts = range(0, len(quads), size)
    return np.maximum.reduceat(quads, firsts, axis=0).astype(np.int64)


def _pack_picked(
    positions: Bytes, used: Flags, reading: Reading, config: LanesConfig, size: int
) -> PackedWeights:
    segments, kept = segments_of(positions, reading), segments_of(used, reading)
    blocks = Blocks.of(reading.segment)
    needed = quads_per_group(quads_of(kept), config.vectors)
    group, segment, block = np.nonzero(needed)  # the blocks with work, in order
    counts = needed[group, segment, block]
    quads = np.concatenate([[0], np.cumsum(counts)])
    starts = np.searchsorted(group, np.arange(len(needed) + 1))
    first_quads = np.zeros(needed.shape, np.int64)
    first_quads[group, segment, block] = quads[:-1]
    groups = OutputGroups.of(len(segments), config.vectors)
    before_last = int(quads[starts[-2]])
    rows = before_last * config.vectors + int(quads[-1] - before_last) * groups.last
    # A kernel argument may not be empty: an all-zero layer still has one block without quads.
    stream = np.zeros((max(rows, 1), BYTES), np.int8)
    # Beside weights of zero the block's first number is picked, and no pieces of two of them.
    index = np.tile(np.arange(BYTES, dtype=np.int8) % size, (max(rows, 1), 1))
    outputs = config.vectors * LANES
    row = 0
    for number, first in enumerate(range(0, len(segments), outputs)):
        vectors = config.vectors if number < groups.count - 1 else groups.last
        begin, end = quads[starts[number]], quads[starts[number + 1]]
        part = slice(row, row + vectors * (end - begin))
        own = slice(first, first + outputs)
        quad, lane, place, weights = _places(kept[own], segments[own], blocks)
        at = first_quads[number][quad[0], quad[1]] - begin + quad[2]
        vector, byte = lane
        index[part].reshape(-1, vectors, BYTES)[at, vector, byte] = place
        stream[part].reshape(-1, vectors, BYTES)[at, vector, byte] = weights
        row = part.stop
    offsets = np.asarray(reading.segments)[segment] + np.asarray(blocks.starts)[block]
    return PackedWeights(
        stream.reshape(-1),
        starts=starts.astype(np.int32),
        offsets=(offsets if offsets.size else np.zeros(1)).astype(np.int32),
        index=index.reshape(-1),
        quads=(quads if offsets.size else np.zeros(2)).astype(np.int32),
    )


def _pack_listed(
    positions: Bytes, used: Flags, reading: Reading, config: LanesConfig, size: int
) -> PackedWeights:
    segments, kept = segments_of(positions, reading), segments_of(used, reading)
    groups = OutputGroups.of(len(segments), config.vectors)
    outputs = config.vectors * LANES
    lists = Quads.each(kept, config.list_outputs, size)
    starts, offsets, index, weights = [0], [], [], []
    for number, first in enumerate(range(0, len(segments), outputs)):
        quads = lists[first // config.list_outputs]
        starts += [starts[-1] + quads.following, starts[-1] + quads.count]
        begins = np.asarray(reading.segments)[quads.segments]
        offsets.append(begins + quads.starts)
        index.append(quads.places - quads.starts[:, None])
        wide = config.vectors if number < groups.count - 1 else groups.last
        part = np.zeros((wide * LANES, quads.count, QUAD), np.int8)
        own = segments[first : first + outputs]
        part[: len(own)] = own[:, quads.segments[:, None], quads.places] * quads.real
        weights.append(part.reshape(wide, LANES, -1, QUAD).transpose(2, 0, 1, 3).reshape(-1))
    filler = np.zeros(1, np.int8)  # a kernel argument may not be empty
    stream = np.concatenate(weights)
    return PackedWeights(
        stream if stream.size else filler,
        starts=np.asarray(starts, np.int32),
        offsets=np.concatenate([*offsets, filler]).astype(np.int32),
        index=np.concatenate([*index, np.zeros((1, QUAD))]).astype(np.int8).reshape(-1),
    )


def _places(
    kept: Flags, segments: Bytes, blocks: Blocks
) -> tuple[tuple[Indices, Indices, Indices], tuple[Indices, Indices], Indices, Bytes]:
    """Where the kept weights of one group of outputs go.

    Returns:
        Segment, block and quad therein; vector and byte of it; the place in the block; the weight.
    """
    output, segment, place = np.nonzero(kept)
    block = place // BYTES
    # The weights of one output in one block follow each other: count from the first of them.
    run = (output * segments.shape[1] + segment) * len(blocks.starts) + block
    begins = np.flatnonzero(np.diff(run, prepend=-1))
    rank = np.arange(run.size) - np.repeat(begins, np.diff(begins, append=run.size))
    lane = output // LANES, output % LANES * QUAD + rank % QUAD
    within = place - np.asarray(blocks.starts)[block]
    return (segment, block, rank // QUAD), lane, within, segments[output, segment, place]


def _pack_gathered(positions: Bytes, used: Flags, config: LanesConfig) -> PackedWeights:
    kept = kept_channels(used, config.list_outputs)
    pieces = Pieces.of(kept)
    quads, weights = [0], []
    for number, channels in enumerate(kept):
        count = -(-int(np.count_nonzero(channels)) // QUAD)
        quads.append(quads[-1] + count)
        outputs = slice(number * config.list_outputs, (number + 1) * config.list_outputs)
        weights.append(_groups_of(positions[outputs][:, :, channels], config.vectors, count))
    stream = np.concatenate(weights)
    lines = int(np.diff(pieces.starts).max())
    return PackedWeights(
        stream if stream.size else np.zeros(1, np.int8),
        pieces.starts,
        pieces.sources,
        pieces.offsets,
        pieces.index,
        np.asarray(quads, np.int32),
        (lines + (lines + 1) % 2) * BYTES,
    )
