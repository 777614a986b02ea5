"""Choice of tile sizes for the panel kernels, by counting cycles.

The model counts, for one core with two 512-bit FMA pipes and two L1 load ports, the cycles of the
inner loops over all tiles of a layer, the ragged last tile included, and ranks the configurations
that fit the registers and caches. Of the machine at hand it knows the size of the L1 cache only;
`nmc compile --tune` measures the first few of the ranking.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel_config import Grouped, Panel, PanelConfig, tile_shapes
from nmcompile.kernels.spec import Conv2d
from nmcompile.sparsity import NM, Pattern

REGISTERS = 32
FMA_LATENCY = 4  # cycles until an accumulator can be used again
PANEL_SHARE = 0.875  # of the L1 cache; the rest is for weights and sums
L1_BYTES = 32 * 1024  # where the machine does not say
MAX_PANEL_BYTES = 36 * 1024  # larger ones gained nothing in 48 KB
L2_PANEL_BYTES = 512 * 1024
LOADS_PER_CYCLE = 1.7  # 512-bit loads from L1; two only on paper
MAX_STEP = 8  # entries of an own list in one iteration
LIST_OVERHEAD = 12.0  # cycles to start and finish one list
PACK_CYCLES = 2.0  # cycles to copy one vector into the panel


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


def panel_bytes() -> int:
    """Bytes of the panel of lists of single channels, which every entry reads from L1."""
    try:
        cache = os.sysconf("SC_LEVEL1_DCACHE_SIZE")
    except (ValueError, OSError):  # not Linux with glibc
        cache = 0
    return min(int(PANEL_SHARE * (cache if cache > 0 else L1_BYTES)), MAX_PANEL_BYTES)


def shared_configs(
    conv: Conv2d, list_outputs: int, density: float, dense: bool
) -> list[PanelConfig]:
    """Tiles for lists shared by `list_outputs` channels (1xN) or for all rows (dense), ranked."""
    found: list[tuple[float, int, int]] = []
    outputs = list_outputs
    while outputs:
        for tile in range(1, 13):
            shapes = tile_shapes(conv.out_pixels, tile, extras=True)
            if any(outputs * s.vectors + s.vectors + 2 * s.extra + 1 > REGISTERS for s in shapes):
                continue
            cost = sum(_shared_cycles(conv, shape, outputs, density) for shape in shapes)
            found.append((cost, tile, outputs))
        outputs = outputs // 2 if outputs % 2 == 0 else 0
    # On a tie, the tile that was counted first: the smaller one.
    found.sort(key=lambda entry: entry[0])
    return [
        _shared_config(conv, tile, outputs, list_outputs, density, dense)
        for _, tile, outputs in found
    ]


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


def _shared_cycles(conv: Conv2d, shape: Panel, outputs: int, density: float) -> float:
    """Cycles of one tile for all output channels."""
    rows = conv.group_in * conv.taps
    vectors = shape.vectors
    fmas = (outputs * vectors + shape.extra) / 2
    loads = (vectors + outputs + (1 + shape.extra) * (shape.extra > 0)) / LOADS_PER_CYCLE
    row = max(fmas, loads, FMA_LATENCY) + 0.5
    lists = conv.group_out / outputs
    lists_cost = lists * (rows * density * row + LIST_OVERHEAD + outputs * vectors)
    return lists_cost + rows * shape.stride / LANES * PACK_CYCLES


def own_configs(conv: Conv2d, pattern: Pattern, density: float) -> list[PanelConfig]:
    """Tiles for lists of single output channels, ranked.

    Grouped lists for N:M where they fit the input channels, else private ones.
    """
    found: list[tuple[float, PanelConfig]] = []
    limit = panel_bytes()
    for tile in range(2, 17):
        for outputs in (1, 2):
            if outputs * tile > 26 or (outputs > 1 and conv.group_out % outputs):
                continue
            most = max(1, limit // (tile * LANES * 4 * conv.taps))
            lists, channels, grouped = _own_lists(conv, pattern, most)
            cost = _own_cycles(conv, tile, outputs, channels, density, grouped)
            chunks = chunks_for(conv, tile, outputs, density, OWN_CHUNKS)
            found.append((cost, PanelConfig(lists, tile, outputs, 1, 1, channels, chunks, grouped)))
    found.sort(key=lambda entry: entry[0])
    return [config for _, config in found]


def _own_lists(
    conv: Conv2d, pattern: Pattern, most: int
) -> tuple[Literal["private", "grouped"], int, Grouped | None]:
    """Kind of list and channels per block, for at most `most` channels."""
    if isinstance(pattern, NM) and pattern.n < pattern.m:
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


def _own_cycles(
    conv: Conv2d,
    tile: int,
    outputs: int,
    channels: int,
    density: float,
    grouped: Grouped | None,
) -> float:
    """Cycles of one image for all output channels."""
    blocks = -(-conv.group_in // channels)
    entries = density * channels * conv.taps
    if grouped is not None:
        entries = channels * conv.taps * grouped.n / grouped.m
    elif entries % 4:
        entries += 1.5  # four offsets fill a word: lists are padded
    cost = 0.0
    for shape in tile_shapes(conv.out_pixels, tile, extras=False):
        v = shape.vectors
        entry = max((v + 1.2) / LOADS_PER_CYCLE, FMA_LATENCY / outputs)
        per_list = entries * entry + LIST_OVERHEAD / outputs + (2.0 * v if blocks > 1 else v)
        cost += conv.group_out * blocks * per_list + conv.group_in * conv.taps * v * PACK_CYCLES
    return cost


def dense_outputs(conv: Conv2d) -> int:
    """Output channels that a dense kernel computes together: 8, or fewer in small groups."""
    return next(n for n in (8, 4, 2, 1) if n <= max(1, conv.group_out))
