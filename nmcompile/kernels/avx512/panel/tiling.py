"""Choice of tile sizes for the panel kernels, by counting cycles.

The model counts, for one core with two 512-bit FMA pipes and two L1 load ports, the cycles of the
inner loops over all tiles of a layer, the ragged last tile included, and ranks the configurations
that fit the registers and caches. Of the machine it knows the number of cores;
`nmc compile --tune` measures the first few of the ranking.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel.config import (
    Grouped,
    Panel,
    PanelConfig,
    lists_of,
    tile_shapes,
    work_order,
)
from nmcompile.kernels.cores import cached_per_cores, cores
from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import NM, Pattern

REGISTERS = 32
FMA_LATENCY = 4  # cycles until an accumulator can be used again
L1_PANEL_BYTES = 32 * 1024
L2_PANEL_BYTES = 512 * 1024
LOADS_PER_CYCLE = 1.7  # 512-bit loads from L1; two only on paper
MAX_STEP = 8  # entries of an own list in one iteration
MOST_SHARED, MOST_OWN = 12, 16  # vectors of a tile, of shared and of own lists
OWN_SUMS = 24  # registers for sums over own lists; the others hold weights
OWN_LOADS = 0.4  # loads per entry of an own list beside those of its row
OWN_PANELS = (0.5, 1.0, 2.0)  # of L1_PANEL_BYTES: the sparser the lists, the more rows pay
LIST_OVERHEAD = 12.0  # cycles to start and finish one list
# Of shared lists: how many more cycles a vector of a row takes from L2, and those of an output
# channel of a list whatever its rows: bias, addresses, prefetches. Fitted to 1x1 layers of
# ResNet-50 and MobileNets, dense, 1x4 and 1x16 (6 % off); the scale is as for private lists.
SHARED_BEYOND, SHARED_OUTPUT, SHARED_SCALE = 0.35, 8.0, 0.91
# Of private lists: cycles of an entry, of one of its loads from L1 and how many more from L2, of a
# list, and of carrying a vector of sums from block to block. Fitted to the times of 20 layers with
# 5 to 20 % density (13 % off) on a core with one 512-bit FMA per cycle; the last one makes them
# cycles of the core that all others are counted for.
PRIVATE_ENTRY, PRIVATE_LOAD, PRIVATE_BEYOND = 0.9, 0.72, 1.3
PRIVATE_LIST, PRIVATE_CARRY = 14.0, 9.0
PRIVATE_SCALE = 0.62
PACK_CYCLES = 2.0  # cycles to copy one vector into the panel
# Of matrix products: cycles of a vector that is transposed into the panel, and of one of sums that
# is transposed and written.
TRANSPOSE_CYCLES, TRANSPOSE_BACK_CYCLES = 5.5, 8.0


@dataclass(frozen=True)
class Chunking:
    """How finely the output channels are split; every part packs the panel once more.

    items: independent work items wanted, so that threads share evenly.
    outputs: fewest output channels per part.
    weight_bytes: weights of one part, which every tile reads again.
    """

    items: int
    outputs: int
    weight_bytes: int


LEAST_OUTPUTS = 64  # per part where more parts are tried, for threads
SHARED_CHUNKS = Chunking(items=8, outputs=128, weight_bytes=512 << 10)
# Lists of single channels pack a panel per small block of channels: splitting cost 2:4 a tenth.
OWN_CHUNKS = Chunking(items=2, outputs=256, weight_bytes=4 << 20)


def chunks_for(
    conv: Conv2d, tile: int, lane_outputs: int, density: float, chunking: Chunking
) -> int:
    """How many parts the output channels are split into."""
    tiles = -(-conv.out_pixels // (tile * LANES))
    weight_bytes = 4 * density * conv.group_out * conv.group_in * conv.taps
    wanted = -(-chunking.items // (conv.batch * conv.groups * tiles))
    if tiles > 1:
        wanted = max(wanted, round(weight_bytes / chunking.weight_bytes))
    most = max(1, conv.group_out // max(chunking.outputs, lane_outputs))
    return max(1, min(wanted, most))


def chunk_choices(conv: Conv2d, few: int, least_outputs: int) -> list[int]:
    """Numbers of parts worth trying: what `chunks_for` says, and its double if parts stay large."""
    return [few, 2 * few] if conv.group_out >= least_outputs * 2 * few else [few]


def time_of(tiles: Sequence[float], repeats: int, threads: int) -> float:
    """The time that counts: the geometric mean of one thread's and of all threads' cycles.

    TVM gives every thread an equal run of consecutive items, so seven equal tiles take two threads
    as long as eight.

    Args:
        tiles: cycles of each tile of one image, group and chunk.
        repeats: images x groups x chunks.
        threads: how many share the items.
    """
    total = sum(tiles) * repeats
    ends = np.cumsum(np.tile(np.asarray(tiles), repeats))
    step = -(-ends.size // threads)
    shares = np.diff(ends[step - 1 :: step], prepend=0.0)
    rest = ends[-1] - ends[step - 1 :: step][-1]
    return math.sqrt(total * max(float(shares.max()), float(rest)))


@cached_per_cores
def shared_configs(
    conv: Conv2d,
    list_outputs: int,
    density: float,
    dense: bool,
    product: bool = False,
    whole: bool = False,
) -> tuple[Candidate, ...]:
    """Tiles for lists shared by `list_outputs` channels (1xN) or for all rows (dense), ranked.

    Args:
        conv: the convolution.
        list_outputs: channels that share a list.
        density: of the weights.
        dense: whether there are no lists.
        product: of a matrix product, whose pixels are rows of features.
        whole: whether all output channels have to be in one part.
    """
    found: list[Candidate] = []
    threads = cores()
    outputs = list_outputs
    while outputs:
        for tile in range(1, MOST_SHARED + 1):
            kinds = _kinds(conv, tile, product)
            if not _fit_registers(outputs, kinds):
                continue
            config = _shared_config(conv, tile, outputs, list_outputs, density, dense)
            few = chunk_choices(conv, config.chunks, LEAST_OUTPUTS)
            for chunks in (1,) if whole else few:
                split = replace(config, chunks=chunks)
                found.append(_shared_candidate(conv, split, kinds, density, threads, product))
        outputs = outputs // 2 if outputs % 2 == 0 else 0
    # On a tie, the tile that was counted first: the smaller one.
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def shared_packed_as(
    conv: Conv2d, packed: PanelConfig, density: float, product: bool
) -> Sequence[Candidate]:
    """Tiles for weights that are packed as for `packed`, ranked."""
    found = []
    for tile in range(1, MOST_SHARED + 1):
        kinds = _kinds(conv, tile, product)
        config = replace(packed, tile=tile)
        panel = tile * LANES * 4 * conv.taps * config.block_channels
        if panel > L2_PANEL_BYTES and config != packed:
            continue
        if not _fit_registers(config.outputs, kinds):
            continue
        few = chunks_for(conv, tile, config.list_outputs, density, SHARED_CHUNKS)
        for split in _split_alike(conv, config, chunk_choices(conv, few, LEAST_OUTPUTS)):
            found.append(_shared_candidate(conv, split, kinds, density, cores(), product))
    return sorted(found, key=lambda candidate: candidate.cycles)


def _split_alike(
    conv: Conv2d, config: PanelConfig, choices: Sequence[int]
) -> Sequence[PanelConfig]:
    """Other numbers of chunks, where that leaves the weights as they are packed.

    Lists of unequal length are dealt to the chunks, and stored in that order.
    """
    others = choices if config.lists in ("dense", "grouped") else ()
    split = [replace(config, chunks=chunks) for chunks in others if chunks != config.chunks]
    return [config, *(each for each in split if lists_of(conv, each) == lists_of(conv, config))]


def _kinds(conv: Conv2d, tile: int, product: bool) -> list[tuple[Panel, int]]:
    """The tiles of one image: a large one has thousands, and two kinds of them."""
    shapes = work_order(tile_shapes(conv.out_pixels, tile, extras=not product))
    return [(shape, len(list(equal))) for shape, equal in itertools.groupby(shapes)]


def _fit_registers(outputs: int, kinds: Sequence[tuple[Panel, int]]) -> bool:
    return all(
        outputs * shape.vectors + shape.vectors + 2 * shape.extra + 1 <= REGISTERS
        and shape.extra <= outputs
        for shape, _ in kinds
    )


def _shared_candidate(
    conv: Conv2d,
    config: PanelConfig,
    kinds: Sequence[tuple[Panel, int]],
    density: float,
    threads: int,
    product: bool,
) -> Candidate:
    tiles = []
    for shape, count in kinds:
        tiles += [_shared_cycles(conv, shape, config, density, product)] * count
    return Candidate(time_of(tiles, conv.batch * conv.groups * config.chunks, threads), config)


def _shared_config(
    conv: Conv2d, tile: int, outputs: int, list_outputs: int, density: float, dense: bool
) -> PanelConfig:
    row_bytes = tile * LANES * 4 * conv.taps
    block = max(1, min(conv.group_in, L2_PANEL_BYTES // row_bytes))
    blocks = -(-conv.group_in // block)
    return PanelConfig(
        lists="dense" if dense else "shared",
        tile=tile,
        outputs=outputs,
        list_outputs=list_outputs,
        run=conv.taps,
        block_channels=-(-conv.group_in // blocks),
        chunks=chunks_for(conv, tile, list_outputs, density, SHARED_CHUNKS),
    )


def row_cycles(vectors: float, outputs: int, extra: int = 0) -> float:
    """Cycles to multiply one row of a shared list with the weights of `outputs` channels."""
    fmas = (outputs * vectors + extra) / 2
    loads = (vectors + outputs + (1 + extra) * (extra > 0)) / LOADS_PER_CYCLE
    return max(fmas, loads, FMA_LATENCY) + 0.5


def _shared_cycles(
    conv: Conv2d, shape: Panel, config: PanelConfig, density: float, product: bool
) -> float:
    """Cycles of one tile for the output channels of one chunk."""
    rows = conv.group_in * conv.taps
    outputs = config.outputs
    beyond = beyond_l1(config.block_channels * conv.taps * shape.stride * 4)
    row = row_cycles(shape.cost, outputs, shape.extra) + SHARED_BEYOND * beyond * shape.vectors
    lists = conv.group_out / outputs / config.chunks
    finish = LIST_OVERHEAD + outputs * (SHARED_OUTPUT + shape.vectors)
    packing = rows * shape.stride / LANES * PACK_CYCLES
    if product:
        packing = _transposing(conv, shape, config.chunks)
    return SHARED_SCALE * (lists * (rows * density * row + finish) + packing)


def _transposing(conv: Conv2d, shape: Panel, chunks: int) -> float:
    """Cycles to bring a tile of a matrix product into the panel, and its sums back from there."""
    vectors = shape.stride / LANES
    there = conv.in_channels * TRANSPOSE_CYCLES
    return vectors * (there + conv.out_channels / chunks * TRANSPOSE_BACK_CYCLES)


def beyond_l1(nbytes: float) -> float:
    """Share of the loads from so large a panel that L1 does not hold."""
    return max(0.0, 1 - L1_PANEL_BYTES / nbytes)


@cached_per_cores
def own_configs(
    conv: Conv2d, pattern: Pattern, density: float, product: bool = False
) -> tuple[Candidate, ...]:
    """Tiles for lists of single output channels, ranked.

    Grouped lists for N:M where they fit the input channels, else private ones. `product`: of a
    matrix product, whose pixels are rows of features.
    """
    found: dict[PanelConfig, float] = {}
    threads = cores()
    # Few rows have few sums: those of several lists hide how long a multiply-add takes.
    tiles_of, outputs_of = (
        (range(1, MOST_OWN + 1), (1, 2, 4)) if product else (range(2, MOST_OWN + 1), (1, 2))
    )
    for tile, outputs, share in itertools.product(tiles_of, outputs_of, OWN_PANELS):
        if outputs * tile > OWN_SUMS or (outputs > 1 and conv.group_out % outputs):
            continue
        if outputs > 2 and tile > 2:
            continue
        most = max(1, int(share * L1_PANEL_BYTES) // (tile * LANES * 4 * conv.taps))
        lists, channels, grouped = _own_lists(conv, pattern, most)
        few = chunks_for(conv, tile, outputs, density, OWN_CHUNKS)
        for chunks in chunk_choices(conv, few, OWN_CHUNKS.outputs):
            config = PanelConfig(lists, tile, outputs, 1, 1, channels, chunks, grouped)
            found[config] = _own_time(conv, config, density, threads, product)
    ranked = sorted(found.items(), key=lambda entry: entry[1])
    return tuple(Candidate(cycles, config) for config, cycles in ranked)


def own_packed_as(
    conv: Conv2d, packed: PanelConfig, density: float, product: bool
) -> Sequence[Candidate]:
    """Tiles for weights that are packed as for `packed`, ranked."""
    found = []
    for tile in range(1 if product else 2, MOST_OWN + 1):
        config = replace(packed, tile=tile)
        panel = tile * LANES * 4 * conv.taps * config.block_channels
        if panel > max(OWN_PANELS) * L1_PANEL_BYTES and config != packed:
            continue
        if config.outputs * tile > OWN_SUMS:
            continue
        few = chunks_for(conv, tile, config.outputs, density, OWN_CHUNKS)
        for split in _split_alike(conv, config, chunk_choices(conv, few, OWN_CHUNKS.outputs)):
            found.append(Candidate(_own_time(conv, split, density, cores(), product), split))
    return sorted(found, key=lambda candidate: candidate.cycles)


def _own_lists(
    conv: Conv2d, pattern: Pattern, most: int
) -> tuple[Literal["private", "grouped"], int, Grouped | None]:
    """Kind of list and channels per block, for at most `most` channels."""
    # Groups of axis ohwi run on into the next output channel, where axis ic does not say the same.
    if isinstance(pattern, NM) and pattern.n < pattern.m and pattern.axis != "ohwi":
        unit = pattern.m if pattern.axis == "ic" else pattern.m // math.gcd(pattern.m, conv.taps)
        fits = [c for c in range(unit, most + 1, unit) if conv.group_in % c == 0]
        if conv.group_in % unit == 0:
            channels = max(fits, default=unit)
            entries = channels * conv.taps // pattern.m * pattern.n
            steps = [s for s in range(pattern.n, MAX_STEP + 1, pattern.n) if entries % s == 0]
            step = max(steps, default=pattern.n)
            if step * (pattern.m - 1).bit_length() <= 64:
                grouped = Grouped(pattern.n, pattern.m, step, pattern.axis == "ic")
                return "grouped", channels, grouped
    blocks = -(-conv.group_in // most)
    return "private", -(-conv.group_in // blocks), None


def _own_time(
    conv: Conv2d, config: PanelConfig, density: float, threads: int, product: bool
) -> float:
    """The time that counts, of all tiles."""
    tiles = _own_cycles(conv, config, density, product)
    return time_of(tiles, conv.batch * conv.groups * config.chunks, threads)


def _own_cycles(conv: Conv2d, config: PanelConfig, density: float, product: bool) -> list[float]:
    """Cycles of each tile of one image for the output channels of one chunk."""
    tile, outputs, channels = config.tile, config.outputs, config.block_channels
    grouped, chunks = config.grouped, config.chunks
    blocks = -(-conv.group_in // channels)
    start = LIST_OVERHEAD * (1 / 3 + 2 / 3 / outputs)
    tiles = list[float]()
    shapes = work_order(tile_shapes(conv.out_pixels, tile, extras=False))
    for shape, equal in itertools.groupby(shapes):
        v = shape.cost
        # Loads from beyond L1 take twice as long.
        beyond = beyond_l1(channels * conv.taps * shape.stride * 4)
        if grouped is not None:
            entries = channels * conv.taps * grouped.n / grouped.m
            loads = (v * (1 + beyond) + OWN_LOADS) / LOADS_PER_CYCLE
            waits = FMA_LATENCY / outputs + (beyond if product else 0.0)
            per_list = entries * max(loads, waits) + start
            per_list += 2.0 * v if blocks > 1 else v
        else:
            entries = density * channels * conv.taps + 1.5  # padded to words of four offsets
            loads = PRIVATE_ENTRY + v * (PRIVATE_LOAD + PRIVATE_BEYOND * beyond)
            per_list = entries * max(loads, FMA_LATENCY / outputs) + PRIVATE_LIST
            per_list += PRIVATE_CARRY * v if blocks > 1 else v
        lists = conv.group_out / chunks * blocks
        packing = conv.group_in * conv.taps * v * PACK_CYCLES
        if product:
            packing = _transposing(conv, shape, chunks)
        cycles = lists * per_list + packing
        tiles += [cycles if grouped is not None else PRIVATE_SCALE * cycles] * len(list(equal))
    return tiles


def dense_outputs(conv: Conv2d) -> int:
    """Output channels that a dense kernel computes together: 8, or fewer in small groups."""
    return next(n for n in (8, 4, 2, 1) if n <= max(1, conv.group_out))
