"""Weights in the order the panel kernels stream them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.panel.config import (
    PackedSizes,
    PanelConfig,
    blocks_of,
    entries_of,
    lists_of,
    words_of,
)
from nmcompile.kernels.avx512.panel.inner_loops import OFFSETS_PER_WORD
from nmcompile.kernels.problem import arrays_of
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import pack_rows

Array = npt.NDArray[np.generic]

WORTH_DEALING = 0.02  # of the longest chunk's work, to look up where a list is from


@dataclass(frozen=True)
class PackedWeights:
    """Arrays of one panel convolution, in the order of the function's arguments.

    values: float32. Shared lists and dense: per (group, block, list), per part of `outputs`
        channels, per entry, per row of the run: `outputs` weights. Private and grouped lists: per
        (group, block, list), per entry: `outputs` weights.
    indices: shared: uint16 entries; private: int64 words of four 16-bit row offsets; grouped: int64
        words of positions. `outputs` words of as many channels lie side by side.
    starts: int32, first entry (shared) or word (private) of each (group, block, list), and the end.
    order: int32, where lists are not stored in the order of their output channels, so that chunks
        have equal work. Shared: for each place of each group the list that is stored there.
        Private: for each place of each (group, block) the channel, counted within its group, by
        length within a chunk, so that lists which are interleaved are equally long, and the
        processor can predict where each ends. Scattered: the output channel of each place; behind
        the last one, places are numbered on.
    scattered: whether the output channels of a shared list do not follow each other.
    """

    values: npt.NDArray[np.float32]
    indices: Array | None
    starts: npt.NDArray[np.int32] | None
    order: npt.NDArray[np.int32] | None = None
    scattered: bool = False

    @property
    def sizes(self) -> PackedSizes:
        """Lengths, as the emitter wants them."""
        return PackedSizes(
            self.values.size,
            0 if self.indices is None else self.indices.size,
            0 if self.starts is None else self.starts.size,
            0 if self.order is None else self.order.size,
            self.scattered,
        )

    @property
    def arrays(self) -> dict[str, Array]:
        """By argument name."""
        return arrays_of(self)


def pack_conv(
    weight: npt.NDArray[np.float32],
    conv: Conv2d,
    config: PanelConfig,
    channels: Sequence[int] | None = None,
    *,
    deals: bool = True,
) -> PackedWeights:
    """Pack an OIHW weight of shape (out, in / groups, kh, kw).

    Args:
        weight: of `conv`.
        conv: its geometry; of one group where there are `channels`.
        config: tile sizes.
        channels: the output channels in the order in which shared lists take them; None as they
            lie.
        deals: whether lists may go to chunks that they do not lie in, for equal work.
    """
    padded_out = lists_of(conv, config) * config.lane_outputs
    if channels is not None:
        packed = pack_conv(weight[list(channels)], conv, config, deals=deals)
        places = np.concatenate([channels, np.arange(len(channels), padded_out)])
        if packed.order is not None:
            places = places.reshape(-1, config.list_outputs)[packed.order]
        return replace(packed, order=places.reshape(-1).astype(np.int32), scattered=True)
    shape = (conv.groups, padded_out, conv.group_in, *conv.kernel)
    padded = np.zeros(shape, np.float32)
    padded[:, : conv.group_out] = weight.reshape(conv.groups, conv.group_out, *weight.shape[1:])
    dealt = _dealt_lists(padded, config, deals)
    pieces, orders = [], []
    for group in range(conv.groups):
        whole = padded[group]
        if dealt is not None:
            lists = whole.reshape(-1, config.list_outputs, *whole.shape[1:])
            whole = lists[dealt[group]].reshape(whole.shape)
        for block in range(blocks_of(conv, config)):
            first = block * config.block_channels
            piece = whole[:, first : first + config.block_channels]
            if dealt is not None and config.lists == "private":
                places = _by_length(piece, config.chunks)
                piece = piece[places]
                orders.append(dealt[group, places])
            pieces.append(_pack_piece(piece, conv, config))
    if dealt is not None and config.lists == "shared":
        orders.extend(dealt)
    values = np.concatenate([piece[0] for piece in pieces])
    if config.lists == "dense":
        return PackedWeights(values, None, None)
    indices = np.concatenate([piece[1] for piece in pieces])
    if config.lists == "grouped":
        return PackedWeights(values, indices, None)
    counts = np.concatenate([piece[2] for piece in pieces])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    # A kernel argument may not be empty: an all-zero layer still gets one element.
    if not values.size:
        values, indices = np.zeros(1, np.float32), np.zeros(1, indices.dtype)
    if not orders:
        return PackedWeights(values, indices, starts)
    return PackedWeights(values, indices, starts, np.concatenate(orders).astype(np.int32))


def _dealt_lists(
    padded: npt.NDArray[np.float32], config: PanelConfig, deals: bool
) -> npt.NDArray[np.int64] | None:
    """For each place of each group its list, so that chunks have equal work: (groups, lists).

    None where lists stay where they are: they are equally long, or equal enough as they lie, or
    `deals` says so. (Private ones are in another order within a chunk all the same.)
    """
    if config.lists not in ("shared", "private") or not deals:
        places = np.arange(padded.shape[1] // config.list_outputs)
        return np.tile(places, (padded.shape[0], 1)) if config.lists == "private" else None
    groups, _, channels = padded.shape[:3]
    rows = padded.reshape(groups, -1, config.list_outputs, channels, padded[0, 0, 0].size)
    if config.lists == "shared":
        work = np.count_nonzero(rows.any(axis=(2, 4)), axis=2)
    else:
        work = np.count_nonzero(rows, axis=(2, 3, 4))
    dealt = np.stack([deal(lists, config.chunks) for lists in work])

    def longest(lists: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Work of each group's chunk that has most."""
        chunks: npt.NDArray[np.int64] = lists.reshape(groups, config.chunks, -1).sum(axis=2)
        return np.asarray(chunks.max(axis=1))

    gain = longest(work) - longest(np.take_along_axis(work, dealt, axis=1))
    if config.lists == "shared" and (gain <= WORTH_DEALING * longest(work)).all():
        return None
    return dealt


def deal(work: npt.NDArray[np.int64], chunks: int) -> npt.NDArray[np.int64]:
    """Deal lists to chunks of as many lists each and about equal work, the longest list first.

    Returns:
        The lists of the first chunk, ascending, then those of the second, and so on.
    """
    size = work.size // chunks
    loads = np.zeros(chunks, np.int64)
    members: list[list[int]] = [[] for _ in range(chunks)]
    for index in np.argsort(-work, kind="stable"):
        open_chunks = [c for c in range(chunks) if len(members[c]) < size]
        chunk = min(open_chunks, key=lambda c: loads[c])
        loads[chunk] += work[index]
        members[chunk].append(int(index))
    return np.asarray([sorted(chunk) for chunk in members], np.int64).reshape(-1)


def _by_length(piece: npt.NDArray[np.float32], chunks: int) -> npt.NDArray[np.int64]:
    """Places of output channels by the number of their weights within each chunk."""
    counts = np.count_nonzero(piece.reshape(chunks, -1, *piece.shape[1:]), axis=(2, 3, 4))
    order = np.argsort(counts, axis=1, kind="stable")
    return np.asarray(order + np.arange(chunks)[:, None] * counts.shape[1]).reshape(-1)


_NONE = np.zeros(0, np.int64)


def _pack_piece(
    piece: npt.NDArray[np.float32], conv: Conv2d, config: PanelConfig
) -> tuple[npt.NDArray[np.float32], Array, npt.NDArray[np.int64]]:
    """Values, indices and counts of one block of input channels of one group."""
    if config.lists == "dense":
        return _dense_values(piece, config), _NONE, _NONE
    if config.lists == "grouped":
        return (*_grouped_words(piece, conv, config), _NONE)
    rows = pack_rows(piece, config.list_outputs, config.run)
    counts = rows.counts.astype(np.int64)
    position = _position_in_list(counts)
    if config.lists == "private":
        return _private_words(rows.indices, rows.values[:, 0], counts, position, config.outputs)
    values = rows.values.reshape(-1, config.run, config.list_outputs)
    parts = config.list_outputs // config.outputs
    split = values.reshape(-1, config.run, parts, config.outputs)
    out = np.empty(values.size, np.float32).reshape(-1, config.run, config.outputs)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(counts.size), counts)
    for part in range(parts):
        out[starts[owner] * parts + part * counts[owner] + position] = split[:, :, part]
    return out.reshape(-1), rows.indices.astype(np.uint16), counts


def _grouped_words(
    piece: npt.NDArray[np.float32], conv: Conv2d, config: PanelConfig
) -> tuple[npt.NDArray[np.float32], Array]:
    """The n largest weights of every group of m rows, zeros included, and their positions."""
    group = config.grouped
    assert group is not None
    rows = piece.transpose(0, 2, 3, 1) if group.taps_first else piece
    groups = rows.reshape(piece.shape[0], -1, group.m)
    kept = np.sort(np.argsort(groups == 0, axis=2, kind="stable")[:, :, : group.n], axis=2)
    weights = np.take_along_axis(groups, kept, axis=2)
    entries, words = entries_of(conv, config), words_of(conv, config)
    per_word = group.step * group.steps_per_word
    positions = np.zeros((piece.shape[0], words * per_word), np.uint64)
    positions[:, :entries] = kept.reshape(piece.shape[0], entries)
    shifts = (np.arange(per_word) * group.bits).astype(np.uint64)
    packed = np.bitwise_or.reduce(positions.reshape(-1, words, per_word) << shifts, axis=2)

    def side_by_side(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        bundles = array.reshape(-1, config.outputs, array.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(bundles).reshape(-1)

    values = side_by_side(weights.reshape(piece.shape[0], entries)).astype(np.float32)
    return values, side_by_side(packed).view(np.int64)


def _dense_values(piece: npt.NDArray[np.float32], config: PanelConfig) -> npt.NDArray[np.float32]:
    """(list, part, channel, tap, output) order."""
    parts = config.list_outputs // config.outputs
    grouped = piece.reshape(-1, parts, config.outputs, piece.shape[1], config.run)
    return np.ascontiguousarray(grouped.transpose(0, 1, 3, 4, 2)).reshape(-1)


def _position_in_list(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, ... within each list, for lists stored one after the other."""
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(starts, counts)


def _private_words(
    entries: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    outputs: int,
) -> tuple[npt.NDArray[np.float32], Array, npt.NDArray[np.int64]]:
    """Interleave the lists of `outputs` channels, padded with zero weights to equal lengths."""
    longest = counts.reshape(-1, outputs).max(axis=1)
    steps = -(-longest // OFFSETS_PER_WORD)
    first_step = np.cumsum(steps) - steps
    channel = np.repeat(np.arange(counts.size), counts)
    word = (first_step[channel // outputs] + position // OFFSETS_PER_WORD) * outputs
    word += channel % outputs
    slot = position % OFFSETS_PER_WORD
    words = np.zeros(steps.sum() * outputs, np.uint64)
    np.bitwise_or.at(words, word, entries.astype(np.uint64) << (16 * slot).astype(np.uint64))
    values = np.zeros(words.size * OFFSETS_PER_WORD, np.float32)
    base = word - channel % outputs
    values[base * OFFSETS_PER_WORD + slot * outputs + channel % outputs] = weights
    return values, words.view(np.int64), steps
