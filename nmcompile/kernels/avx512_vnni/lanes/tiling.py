"""Choice of tile sizes for the kernels with outputs in lanes, by counting cycles.

The model counts, for one core that starts one `vpdpbusd` a cycle, the products of all tiles of a
layer, the ragged ones included, what picking adds to them, and what a tile costs whatever its
products are, and ranks the tiles that fit the registers. `nmc compile --tune` measures the first
few of the ranking.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel.tiling import time_of
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, Method, OutputGroups, tiles_of
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.cores import cores
from nmcompile.kernels.problem import Candidate

REGISTERS = 32
PICK = 1 / 3  # cycles that a vpermb adds to its vpdpbusd
LATENCY = 4  # cycles until a sum can be added to again
LOADS = 2.0  # per cycle, from L1
L2_LOADS = 0.5  # vectors per cycle from L2
L1_BYTES = 24 * 1024  # of 32 KB, what the weights of a group may take
TILE = 30.0  # cycles to start a tile
BLOCK = 4.0  # cycles to start a block of source bytes
SEGMENT = 6.0  # cycles to start a segment
VECTOR = 5.0  # cycles to requantise and store a vector of sums
SHORTLIST = 6  # pairs of pixels and vectors for which blocks and chunks are tried
PIXELS = (28, 56, 112, 224)  # of a block
CHUNKS = (1, 2, 4, 8)
Work = npt.NDArray[np.float64]


def fits(method: Method, pixels: int, vectors: int) -> bool:
    """Whether the sums and what they are made of have registers."""
    sums = pixels * vectors
    if method == "dense":
        return sums + min(vectors, 4) + 1 <= REGISTERS
    return sums + pixels + 3 <= REGISTERS


def tile_cycles(method: Method, pixels: int, vectors: int, quads: Work, beyond: float) -> Work:
    """Cycles of the products of one tile, for each group of outputs.

    beyond: share of the weights that come from L2.
    """
    products = pixels * vectors
    if method == "dense":
        loads = (pixels + vectors) / LOADS + beyond * vectors / L2_LOADS / 2
        return quads * max(products, loads, LATENCY)
    loads = 2 * vectors / LOADS + beyond * 2 * vectors / L2_LOADS / 2
    return quads * max(products * (1 + PICK), loads, LATENCY)


def ranked(
    reading: Reading, method: Method, work: dict[int, tuple[Work, Work]]
) -> tuple[Candidate, ...]:
    """Tiles, ranked.

    Args:
        reading: of the convolution.
        method: of the lanes.
        work: by vectors of a group, for each group: quads, and blocks or segments.
    """
    columns = reading.columns
    shapes: list[tuple[float, int, int]] = []
    for vectors, (quads, blocks) in work.items():
        for pixels in sorted({-(-columns // k) for k in range(1, columns + 1)} & set(range(1, 29))):
            if fits(method, pixels, vectors):
                cost = _row(reading, method, pixels, vectors, quads, blocks).sum()
                shapes.append((float(cost), pixels, vectors))
    found = []
    threads = cores()
    for _, pixels, vectors in sorted(shapes)[:SHORTLIST]:
        quads, blocks = work[vectors]
        per_group = _row(reading, method, pixels, vectors, quads, blocks)
        full, rest = tiles_of(columns, pixels)
        tiles = reading.rows * (full + (rest > 0))
        sizes = {min(tiles, max(1, n // pixels)) for n in PIXELS}
        for block, chunks in itertools.product(sorted(sizes), CHUNKS):
            if chunks > len(quads):
                continue
            edges = np.arange(chunks + 1) * len(quads) // chunks
            parts = np.add.reduceat(per_group * reading.rows, edges[:-1])
            whole, left = divmod(tiles, block)
            shares = np.array([block] * whole + [left] * (left > 0)) / tiles
            items = (parts[:, None] * shares).reshape(-1)
            cycles = time_of(items.tolist(), 1, threads) + 40.0 * items.size
            found.append(Candidate(cycles, LanesConfig(method, pixels, vectors, block, chunks)))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def _row(
    reading: Reading, method: Method, pixels: int, vectors: int, quads: Work, blocks: Work
) -> Work:
    """Cycles of one row of output pixels, for each group of outputs."""
    groups = OutputGroups.of(reading.conv.out_channels, vectors)
    stream = vectors * BYTES * (1 if method == "dense" else 2) * quads.mean()
    beyond = max(0.0, 1 - L1_BYTES / max(stream, 1.0))
    full, rest = tiles_of(reading.columns, pixels)
    cycles = np.zeros(len(quads))
    for count, size in ((full, pixels), (1, rest)):
        if not size or not count:
            continue
        for part, wide in ((slice(-1), vectors), (slice(-1, None), groups.last)):
            tile = tile_cycles(method, size, wide, quads[part], beyond)
            start = SEGMENT if method == "dense" else BLOCK + size / LOADS
            finish = TILE + VECTOR * size * wide
            cycles[part] += count * (tile + start * blocks[part] + finish)
    return cycles


def dense_work(reading: Reading, vectors: Sequence[int]) -> dict[int, tuple[Work, Work]]:
    """All quads of all segments."""
    rows, columns = reading.window
    found = {}
    for size in vectors:
        groups = OutputGroups.of(reading.conv.out_channels, size).count
        segments = np.full(groups, float(rows * columns))
        found[size] = (segments * reading.quads, segments)
    return found


def vectors_of(outputs: int, most: int) -> list[int]:
    """Sizes of groups worth trying for so many output channels."""
    return list(range(1, min(most, -(-outputs // LANES)) + 1))
