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
    tiles_of,
)
from nmcompile.kernels.avx512_vnni.lanes.costs import Costs
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.cores import cores
from nmcompile.kernels.problem import Candidate

REGISTERS = 32
L1_BYTES = 24 * 1024  # of 32 KB, what the weights of a group may take
SETS, WAYS = 64, 12  # of L1; 8 ways on Zen 4
SHORTLIST = 6  # pairs of pixels and vectors for which blocks and chunks are tried
PIXELS = (14, 28, 56, 112, 224)  # of a block
CHUNKS = (1, 2, 4, 8)
MOST_PIXELS = 28  # of a tile

Counts = npt.NDArray[np.float64]


def fits(method: Method, pixels: int, vectors: int) -> bool:
    """Whether the sums and what they are made of have registers."""
    sums = pixels * vectors  # weights beyond three vectors are read as they are multiplied
    if method == "picked":
        return sums + pixels + 3 <= REGISTERS
    return sums + min(vectors, 4) + 1 <= REGISTERS


def tile_cycles(
    costs: Costs,
    method: Method,
    pixels: int,
    vectors: int,
    quads: Counts,
    beyond: float,
    crowded: bool,
    picked: Counts | float = 0.0,
) -> Counts:
    """Cycles of the products of one tile, for each group of outputs.

    beyond: share of the weights that come from L2.
    crowded: whether the pixels of a tile evict each other from L1.
    picked: of listed quads, how many are picked.
    """
    own = method == "picked"
    streams = vectors * (2 if own else 1)
    loads: float = vectors
    loads += vectors if own else pixels
    products: float = pixels * vectors * (1 + (costs.pick if own else 0))
    within = max(products, loads * costs.load, costs.latency)
    picks = picked * (costs.pick * pixels)
    evicted = costs.crowded * pixels if crowded else 0.0
    return quads * (within + beyond * streams * costs.load_l2 + evicted) + picks


def ways_for(pitch: int) -> int:
    """Lines that L1 holds of addresses `pitch` bytes apart."""
    if pitch % BYTES:
        return SETS * WAYS
    return SETS // math.gcd(pitch // BYTES, SETS) * WAYS


@dataclass(frozen=True)
class Work:
    """What one tile has to do for each group of `vectors`, and one pixel for each list.

    quads: of each group; picked: those of listed ones that are.
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
    picked: Counts | None = None


def ranked(
    reading: Reading, method: Method, works: Sequence[Work], costs: Costs
) -> tuple[Candidate, ...]:
    """Tiles of one method, ranked; `works` are by vectors of a group."""
    _, rows, columns = reading.grid
    shapes: list[tuple[float, int, int, int, Counts]] = []
    for number, work in enumerate(works):
        for pixels, lines in tile_shapes(rows, columns):
            if fits(method, pixels * lines, work.vectors):
                row = _row(reading, costs, method, pixels, lines, work)
                shapes.append((float(row.sum()), pixels, lines, number, row))
    found = []
    threads = cores()
    for _, pixels, lines, number, row in sorted(shapes, key=lambda shape: shape[:4])[:SHORTLIST]:
        work = works[number]
        for high, tiles in blocks(reading, pixels, PIXELS):
            high = min(rows, -(-high // lines) * lines)
            for chunks in CHUNKS:
                split = LanesConfig(
                    method, pixels, work.vectors, high, tiles, chunks, work.list_outputs, lines
                )
                if chunks <= len(work.quads if work.pieces is None else work.pieces):
                    items = _items(reading, costs, split, work, row)
                    found.append(Candidate(time_of(items, 1, threads), split))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def tile_shapes(rows: int, columns: int) -> list[tuple[int, int]]:
    """Pixels of a row, and rows, that may be accumulated together."""
    shapes = {(-(-columns // k), 1) for k in range(1, columns + 1)}
    shapes |= {(columns, -(-rows // k)) for k in range(1, rows + 1)}
    return sorted(shape for shape in shapes if math.prod(shape) <= MOST_PIXELS)


def blocks(reading: Reading, pixels: int, areas: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and tiles of blocks worth trying, of about so many pixels."""
    _, rows, columns = reading.grid
    per_row = -(-columns // pixels)
    found = set()
    for size in areas:
        tiles = min(per_row, max(1, size // pixels))
        found.add((min(rows, max(1, size // columns)) if tiles == per_row else 1, tiles))
    return sorted(found)


def _items(
    reading: Reading, costs: Costs, config: LanesConfig, work: Work, row: Counts
) -> list[float]:
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
    weights = np.add.reduceat(_streamed(config, work), edges)
    items += (weights * (costs.again + costs.memory / (images * items[0].size)))[:, None, None]
    if work.pieces is not None and work.sources is not None:
        high = gather.Axis.of(reading.conv, 0).count(down)
        wide = gather.Axis.of(reading.conv, 1).count(right * config.pixels)
        pixels = high[:, None] * wide
        each_pixel = work.pieces.max() * BYTES + reading.conv.in_channels
        beyond = 1 - L1_BYTES / np.maximum(pixels * each_pixel, L1_BYTES)
        sources, pieces = (np.add.reduceat(each, edges) for each in (work.sources, work.pieces))
        store = costs.store + costs.store_beyond * beyond
        items += sources[:, None, None] * (costs.source * pixels)
        items += pieces[:, None, None] * (store * pixels + costs.gather_row * high[:, None])
    else:
        high, wide = (
            gather.Axis.of(reading.conv, axis).count(count)
            for axis, count in ((0, down), (1, right * config.pixels))
        )
        lines = high[:, None] * wide * (reading.conv.in_channels / BYTES)
        written = down[:, None] * (right * config.pixels) * (costs.output / BYTES)
        held = (lines + written * reading.conv.out_channels) * BYTES
        beyond = 1 - L1_BYTES / np.maximum(held, L1_BYTES)
        parts = np.diff([*edges, len(part)])
        each = lines + written * (LANES * work.vectors)
        items += parts[:, None, None] * (costs.far * each * beyond)
    by_chunk = np.repeat(items.reshape(len(chunks), -1) + costs.item, images, axis=0)
    return [float(cycles) for cycles in by_chunk.reshape(-1)]


def _vectors_of(method: Method, work: Work) -> Counts:
    """Vectors of weights of each group of outputs, and of where they pick, if each does."""
    return work.quads * (work.vectors * (2 if method == "picked" else 1))


def _streamed(config: LanesConfig, work: Work) -> Counts:
    """The same of what is split into chunks: each list where bytes are gathered, or each group."""
    vectors = _vectors_of(config.method, work)
    if work.pieces is None:
        return vectors
    groups = work.list_outputs // (LANES * work.vectors)
    return np.add.reduceat(vectors, np.arange(0, len(vectors), groups))


def sizes(whole: int, part: int) -> Counts:
    """Sizes of the parts of a whole, the last of which may be smaller."""
    count = -(-whole // part)
    return np.array([part] * (count - 1) + [whole - (count - 1) * part], float)


def _row(
    reading: Reading, costs: Costs, method: Method, pixels: int, lines: int, work: Work
) -> Counts:
    """Cycles of one row of output pixels, for each group of outputs: a mean where tiles differ."""
    groups = OutputGroups.of(reading.conv.out_channels, work.vectors)
    stream = BYTES * _vectors_of(method, work).mean()
    beyond = max(0.0, 1 - L1_BYTES / max(stream, 1.0))
    _, rows, columns = reading.grid
    full, rest = tiles_of(columns, pixels)
    high, left = divmod(rows, lines)
    tiles = [(full * high, pixels * lines), (high, rest * lines), (full, pixels * left)]
    cycles = np.zeros(len(work.quads))
    for count, size in tiles:
        if not size or not count:
            continue
        for part, wide in ((slice(-1), work.vectors), (slice(-1, None), groups.last)):
            crowded = method in ("dense", "listed") and size > ways_for(reading.pitch)
            picked = 0.0 if work.picked is None else work.picked[part]
            quads = work.quads[part]
            tile = tile_cycles(costs, method, size, wide, quads, beyond, crowded, picked)
            start = costs.block + size * costs.load if method == "picked" else costs.segment
            finish = costs.tile + costs.vector * size * wide
            cycles[part] += count * (tile + start * work.starts[part] + finish)
    return cycles / rows


def vectors_of(outputs: int, most: int) -> list[int]:
    """Sizes of groups worth trying for so many output channels."""
    return list(range(1, min(most, -(-outputs // LANES)) + 1))
