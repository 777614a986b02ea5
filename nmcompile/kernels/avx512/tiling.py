"""Choice of tile sizes for the panel kernels, by counting cycles.

The model counts, for one core with two 512-bit FMA pipes and two L1 load ports, the cycles of the
inner loops over all tiles of a layer, the ragged last tile included, and takes the cheapest
configuration that fits the registers and caches. It knows nothing about the machine at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel import PanelConfig
from nmcompile.kernels.spec import Conv2d

REGISTERS = 32
FMA_LATENCY = 4  # cycles until an accumulator can be used again
L1_PANEL_BYTES = 36 * 1024  # leaves room for weights and lists in 48 KB
L2_PANEL_BYTES = 512 * 1024
L2_WEIGHT_BYTES = 512 * 1024  # weights of one chunk, re-read by every tile
LIST_OVERHEAD = 12.0  # cycles to start and finish one list
PACK_CYCLES = 2.0  # cycles to copy one vector into the panel
MIN_ITEMS = 8  # independent work items, so that a few threads share evenly
MIN_CHUNK_OUTPUTS = 128  # fewer outputs would not pay for packing the panel once more


def tiles_of(conv: Conv2d, tile: int) -> Iterator[int]:
    """Vectors of each tile of one image: equal ones, then the rest."""
    vectors = -(-conv.out_pixels // LANES)
    full = conv.out_pixels // (tile * LANES)
    yield from [tile] * full
    if vectors - full * tile:
        yield vectors - full * tile


def chunks_for(conv: Conv2d, tile: int, lane_outputs: int, density: float) -> int:
    """How many parts the output channels are split into.

    More where there are few tiles to share between threads, or where the weights would not stay
    in L2 from one tile to the next.
    """
    tiles = len(list(tiles_of(conv, tile)))
    weight_bytes = 4 * density * conv.group_out * conv.group_in * conv.taps
    wanted = -(-MIN_ITEMS // (conv.batch * conv.groups * tiles))
    if tiles > 1:
        wanted = max(wanted, round(weight_bytes / L2_WEIGHT_BYTES))
    most = max(1, conv.group_out // max(MIN_CHUNK_OUTPUTS, lane_outputs))
    return max(1, min(wanted, most))


def shared_config(conv: Conv2d, list_outputs: int, density: float, dense: bool) -> PanelConfig:
    """Tiles for lists shared by `list_outputs` channels (1xN) or for all rows (dense)."""
    best: tuple[float, int, int] | None = None
    outputs = list_outputs
    while outputs:
        for tile in range(1, 13):
            if outputs * tile + tile + 1 > REGISTERS:
                break
            cost = sum(_shared_cycles(conv, v, outputs, density) for v in tiles_of(conv, tile))
            if best is None or cost < best[0]:
                best = (cost, tile, outputs)
        outputs = outputs // 2 if outputs % 2 == 0 else 0
    assert best is not None
    _, tile, outputs = best
    row_bytes = tile * LANES * 4 * conv.taps
    block = max(1, min(conv.group_in, L2_PANEL_BYTES // row_bytes))
    blocks = -(-conv.group_in // block)
    return PanelConfig(
        tile=tile,
        outputs=outputs,
        list_outputs=list_outputs,
        run=conv.taps,
        block_channels=-(-conv.group_in // blocks),
        chunks=chunks_for(conv, tile, list_outputs, density),
        dense=dense,
    )


def _shared_cycles(conv: Conv2d, vectors: int, outputs: int, density: float) -> float:
    """Cycles of one tile for all output channels."""
    rows = conv.group_in * conv.taps
    loads = (vectors + outputs) / 2
    row = max(outputs * vectors / 2, loads * 1.1, FMA_LATENCY) + 0.5
    lists = conv.group_out / outputs
    lists_cost = lists * (rows * density * row + LIST_OVERHEAD + outputs * vectors)
    return lists_cost + rows * vectors * PACK_CYCLES


def private_config(conv: Conv2d, density: float) -> PanelConfig:
    """Tiles for lists of single output channels (N:M, unstructured)."""
    best: tuple[float, int, int, int] | None = None
    rows_all = conv.group_in * conv.taps
    for tile in range(2, 17):
        for outputs in (1, 2, 4):
            if outputs * tile > 24 or conv.group_out % outputs:
                continue
            most = max(1, L1_PANEL_BYTES // (tile * LANES * 4 * conv.taps))
            blocks = -(-conv.group_in // most)
            channels = -(-conv.group_in // blocks)
            cost = 0.0
            for v in tiles_of(conv, tile):
                # Four offsets fill a word, so lists are padded by 1.5 entries on average unless
                # they are multiples of four by construction.
                entries = density * channels * conv.taps
                padded = entries if entries % 4 == 0 else entries + 1.5
                entry = max((v + 1.25) / 2 * 1.25, FMA_LATENCY / outputs)
                lists = conv.group_out * blocks
                per_list = padded * entry + LIST_OVERHEAD / outputs + (1.5 * v if blocks > 1 else v)
                cost += lists * per_list + rows_all * v * PACK_CYCLES
            if best is None or cost < best[0]:
                best = (cost, tile, outputs, channels)
    assert best is not None
    _, tile, outputs, channels = best
    return PanelConfig(
        tile=tile,
        outputs=outputs,
        list_outputs=1,
        run=1,
        block_channels=channels,
        chunks=chunks_for(conv, tile, outputs, density),
        private=True,
    )


def dense_outputs(conv: Conv2d) -> int:
    """Output channels that a dense kernel computes together: 8, or fewer in small groups."""
    return next(n for n in (8, 4, 2, 1) if n <= max(1, conv.group_out))
