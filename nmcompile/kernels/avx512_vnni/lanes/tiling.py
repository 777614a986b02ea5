"""Choice of tile sizes for the kernels with outputs in lanes, by counting cycles.

The model counts, for one core that starts one `vpdpbusd` a cycle, the products of all tiles of a
layer, the ragged ones included, what picking adds to them, and what a tile costs whatever its
products are, and ranks the tiles that fit the registers. `nmc compile --tune` measures the first
few of the ranking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel.tiling import time_of
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.avx512_vnni.lanes import gather
from nmcompile.kernels.avx512_vnni.lanes.config import (
    LanesConfig,
    Method,
    OutputGroups,
    picks_of,
    tiles_of,
)
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.cores import cores
from nmcompile.kernels.problem import Candidate

REGISTERS = 32
PICK = 1 / 3  # cycles that a vpermb adds to its vpdpbusd
LATENCY = 4  # cycles until a sum can be added to again
LOADS = 2.0  # per cycle, from L1
L2_LOADS = 0.5  # vectors per cycle from L2
L1_BYTES = 24 * 1024  # of 32 KB, what the weights of a group may take
# Fitted to ResNet-50's layers on a Zen 4 core: dense, 2:4, 1:4, 1x16 and 1x32.
TILE = 18.0  # cycles to start a tile
BLOCK = 3.0  # cycles to start a block of source bytes
SEGMENT = 6.0  # cycles to start a segment
VECTOR = 1.7  # cycles to requantise and store a vector of sums
SETS, WAYS = 64, 8  # of L1
CROWDED = 3.3  # times as long as a load of four bytes takes whose line was evicted since
SHORTLIST = 6  # pairs of pixels and vectors for which blocks and chunks are tried
PIXELS = (14, 28, 56, 112, 224)  # of a block
CHUNKS = (1, 2, 4, 8)
MOST_PIXELS = 28  # of a tile
# Of gathering 64 kept bytes of a pixel: cycles per vector of source bytes, to store them, how many
# more where L1 does not hold the pixels before and after, and per row of pixels.
SOURCE, STORE, STORE_BEYOND, GATHER_ROW = 1.0, 2.0, 4.0, 30.0
ITEM = 60.0  # cycles to start a work item

Counts = npt.NDArray[np.float64]


def fits(method: Method, pixels: int, vectors: int) -> bool:
    """Whether the sums and what they are made of have registers."""
    sums = pixels * vectors  # weights beyond three vectors are read as they are multiplied
    if method == "picked":
        return sums + pixels + 3 <= REGISTERS
    return sums + min(vectors, 4) + 1 <= REGISTERS


def tile_cycles(
    method: Method,
    pixels: int,
    vectors: int,
    quads: Counts,
    beyond: float,
    crowded: bool,
    list_outputs: int,
) -> Counts:
    """Cycles of the products of one tile, for each group of outputs.

    beyond: share of the weights that come from L2.
    crowded: whether the pixels of a tile evict each other from L1.
    list_outputs: outputs that share a list.
    """
    products: float = pixels * vectors
    streams = vectors
    loads: float = vectors
    if method == "picked":
        picks = picks_of(vectors, list_outputs)
        products += PICK * pixels * picks
        streams += 0 if list_outputs else vectors
        loads += picks
    else:
        loads += pixels * (CROWDED if crowded else 1)
    loads = loads / LOADS + beyond * streams / L2_LOADS / 2
    return quads * max(products, loads, LATENCY)


def ways_for(pitch: int) -> int:
    """Lines that L1 holds of addresses `pitch` bytes apart."""
    if pitch % BYTES:
        return SETS * WAYS
    return SETS // math.gcd(pitch // BYTES, SETS) * WAYS


@dataclass(frozen=True)
class Work:
    """What one tile has to do for each group of `vectors`, and one pixel for each list.

    quads: of each group.
    starts: blocks of source bytes, or segments, of each group.
    sources, pieces: of each list, gathered: vectors of source bytes, and of 64 kept bytes.
    list_outputs: output channels of a list.
    """

    vectors: int
    quads: Counts
    starts: Counts
    sources: Counts | None = None
    pieces: Counts | None = None
    list_outputs: int = 0


def ranked(reading: Reading, method: Method, works: Sequence[Work]) -> tuple[Candidate, ...]:
    """Tiles of one method, ranked; `works` are by vectors of a group."""
    _, _, columns = reading.grid
    shapes: list[tuple[float, int, int, Counts]] = []
    for number, work in enumerate(works):
        for pixels in sorted({-(-columns // k) for k in range(1, columns + 1)}):
            if pixels <= MOST_PIXELS and fits(method, pixels, work.vectors):
                row = _row(reading, method, pixels, work)
                shapes.append((float(row.sum()), pixels, number, row))
    found = []
    threads = cores()
    for _, pixels, number, row in sorted(shapes, key=lambda shape: shape[:3])[:SHORTLIST]:
        work = works[number]
        for rows, tiles in blocks(reading, pixels, PIXELS):
            for chunks in CHUNKS:
                split = LanesConfig(
                    method, pixels, work.vectors, rows, tiles, chunks, work.list_outputs
                )
                if chunks <= len(work.quads if work.pieces is None else work.pieces):
                    items = _items(reading, split, work, row)
                    found.append(Candidate(time_of(items, 1, threads), split))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def blocks(reading: Reading, pixels: int, areas: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and tiles of blocks worth trying, of about so many pixels."""
    _, rows, columns = reading.grid
    per_row = -(-columns // pixels)
    found = set()
    for size in areas:
        tiles = min(per_row, max(1, size // pixels))
        found.add((min(rows, max(1, size // columns)) if tiles == per_row else 1, tiles))
    return sorted(found)


def _items(reading: Reading, config: LanesConfig, work: Work, row: Counts) -> list[float]:
    """Cycles of each work item, where those of one row of pixels are known."""
    images, rows, columns = reading.grid
    per_row = -(-columns // config.pixels)
    per_group = row / per_row
    part = per_group
    if work.pieces is not None:
        groups = work.list_outputs // (LANES * work.vectors)
        part = np.add.reduceat(per_group, np.arange(0, len(per_group), groups))
    edges = np.arange(config.chunks) * len(part) // config.chunks
    chunks = np.add.reduceat(part, edges)
    down, right = sizes(rows, config.rows), sizes(per_row, config.tiles)
    items = chunks[:, None, None] * down[:, None] * right
    if work.pieces is not None and work.sources is not None:
        high = gather.Axis.of(reading.conv, 0).count(down)
        wide = gather.Axis.of(reading.conv, 1).count(right * config.pixels)
        pixels = high[:, None] * wide
        each_pixel = work.pieces.max() * BYTES + reading.conv.in_channels
        beyond = 1 - L1_BYTES / np.maximum(pixels * each_pixel, L1_BYTES)
        sources, pieces = (np.add.reduceat(each, edges) for each in (work.sources, work.pieces))
        store = STORE + STORE_BEYOND * beyond
        items += sources[:, None, None] * (SOURCE * pixels)
        items += pieces[:, None, None] * (store * pixels + GATHER_ROW * high[:, None])
    by_chunk = np.repeat(items.reshape(len(chunks), -1) + ITEM, images, axis=0)
    return [float(cycles) for cycles in by_chunk.reshape(-1)]


def sizes(whole: int, part: int) -> Counts:
    """Sizes of the parts of a whole, the last of which may be smaller."""
    count = -(-whole // part)
    return np.array([part] * (count - 1) + [whole - (count - 1) * part], float)


def _row(reading: Reading, method: Method, pixels: int, work: Work) -> Counts:
    """Cycles of one row of output pixels, for each group of outputs."""
    groups = OutputGroups.of(reading.conv.out_channels, work.vectors)
    own = method == "picked" and not work.list_outputs
    stream = work.vectors * BYTES * (2 if own else 1) * work.quads.mean()
    beyond = max(0.0, 1 - L1_BYTES / max(stream, 1.0))
    full, rest = tiles_of(reading.grid[2], pixels)
    cycles = np.zeros(len(work.quads))
    for count, size in ((full, pixels), (1, rest)):
        if not size or not count:
            continue
        for part, wide in ((slice(-1), work.vectors), (slice(-1, None), groups.last)):
            crowded = method == "dense" and size > ways_for(reading.pitch)
            quads, shared = work.quads[part], work.list_outputs
            tile = tile_cycles(method, size, wide, quads, beyond, crowded, shared)
            start = BLOCK + size / LOADS if method == "picked" else SEGMENT
            finish = TILE + VECTOR * size * wide
            cycles[part] += count * (tile + start * work.starts[part] + finish)
    return cycles


def vectors_of(outputs: int, most: int) -> list[int]:
    """Sizes of groups worth trying for so many output channels."""
    return list(range(1, min(most, -(-outputs // LANES)) + 1))
