"""Choice of tile sizes for products on the tile unit, by counting cycles.

The model counts, for one core, the products of all tiles of a layer, the loads that feed them, what
gathering takes, and what becomes of the sums. `nmc compile --tune` measures the first few of the
ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.panel.tiling import time_of
from nmcompile.kernels.avx512_amx.instructions import ROWS, SUMS, Product
from nmcompile.kernels.avx512_amx.tiles.config import Method, TilesConfig
from nmcompile.kernels.avx512_amx.tiles.packing import Gathering
from nmcompile.kernels.avx512_vnni.lanes import gather
from nmcompile.kernels.avx512_vnni.lanes.config import OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.avx512_vnni.lanes.tiling import blocks, sizes
from nmcompile.kernels.cores import cores
from nmcompile.kernels.problem import Candidate

CHUNKS = (1, 2, 4, 8)
PIXELS = (28, 56, 112, 196, 392, 784)  # of a block
L1_BYTES = 40 * 1024  # of 48 KB
TILE_BYTES = 1024
# Fitted to ResNet-50's layers on an Emerald Rapids core.
PRODUCT = 16.0  # cycles of a product, which fewer pixels do not shorten while depth is 64 bytes
CHAIN = 40.0  # cycles until the same sums can be added to again
TILE_LOAD, WEIGHTS_L2, PIXELS_L2 = 8.0, 30.0, 15.0  # cycles to load a tile, by where it lies
START = 60.0  # cycles to start tiles of sums that are multiplied together
SUMS_TILE = 22.0  # cycles to begin and to store one tile of sums
# Cycles to finish a vector of sums, and more where a residual is added.
VECTOR: Mapping[Product, float] = {"int8": 2.1, "bfloat16": 1.2}
RESIDUAL: Mapping[Product, float] = {"int8": 5.1, "bfloat16": 1.0}
SOURCE, PIECE, STEP = 1.6, 2.0, 12.0  # cycles of gathering, by pixel, and by eight of them
ITEM = 300.0  # cycles to start a work item
# Cycles that a byte of weights takes beside the products: once, from beyond L2, and by each block.
MEMORY, AGAIN = 0.03, 0.02

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """What lists, or groups of outputs where none are gathered, have to do.

    steps: of each, under one tile of pixels.
    sources, pieces: of each list: vectors of source bytes and of kept bytes.
    gathering: of the lists; None if dense.
    list_outputs: output channels of a list; 0 if dense.
    """

    steps: Counts
    sources: Counts | None = None
    pieces: Counts | None = None
    gathering: Gathering | None = None
    list_outputs: int = 0


def ranked(
    reading: Reading,
    method: Method,
    works: Sequence[tuple[int, Work]],
    product: Product,
    residual: bool,
) -> tuple[Candidate, ...]:
    """Tiles of one method, ranked.

    Args:
        reading: of the convolution.
        method: of the tiles.
        works: by vectors of a group.
        product: what is multiplied.
        residual: whether one is added to the sums.
    """
    vector = VECTOR[product] + RESIDUAL[product] * residual
    columns = reading.grid[2]
    threads = cores()
    found = []
    for vectors, work in works:
        for pixels in _widths(columns):
            for height, tiles in blocks(reading, pixels, PIXELS):
                for across in range(1, min(SUMS // vectors, height * tiles) + 1):
                    config = TilesConfig(
                        method, pixels, across, vectors, height, tiles, 1, work.list_outputs
                    )
                    parts = _Parts.of(reading, config, work, vector)
                    for chunks in CHUNKS:
                        if chunks <= len(work.steps):
                            split = replace(config, chunks=chunks)
                            items = parts.items(chunks, reading.grid[0])
                            found.append(Candidate(time_of(items, 1, threads), split))
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def _widths(columns: int) -> list[int]:
    """Pixels of a tile worth trying: as many as fit, or what divides a row evenly."""
    most = min(columns, ROWS)
    even = -(-columns // -(-columns // ROWS))
    return sorted({most, even})


@dataclass(frozen=True)
class _Parts:
    """Cycles of each list, or group of outputs, on each block of pixels."""

    cycles: Counts

    @classmethod
    def of(cls, reading: Reading, config: TilesConfig, work: Work, vector: float) -> _Parts:
        """Of one configuration, (lists or groups, blocks); `vector` cycles finish one of sums."""
        columns = reading.grid[2]
        conv, across, vectors = reading.conv, config.across, config.vectors
        down = sizes(reading.grid[1], config.rows)
        rights = -(-columns // (config.tiles * config.pixels))
        products = np.ceil(down * config.tiles / across)
        held = _source_bytes(reading, config, work)
        weights = work.steps.mean() * vectors * TILE_BYTES
        fits = held + weights <= L1_BYTES
        # The first product of a block brings the weights to L1, if they stay there.
        again = 1 - 1 / products.mean() if fits else 0.0
        of_weights = again * TILE_LOAD + (1 - again) * WEIGHTS_L2
        of_pixels = TILE_LOAD if fits else PIXELS_L2
        loads = across * of_pixels + vectors * of_weights
        each = max(PRODUCT * across * vectors, CHAIN, loads)
        sums = across * vectors
        finish = vector * config.pixels * sums
        product = work.steps * each + START + SUMS_TILE * sums + finish
        groups = OutputGroups.of(conv.out_channels, vectors).count
        share = groups / len(work.steps)  # groups of outputs of a list
        stream = work.steps * (share * vectors * TILE_BYTES)
        traffic = stream * (MEMORY / (len(down) * rights) + AGAIN)
        cycles = product[:, None] * share * products + traffic[:, None]
        if work.gathering is not None:
            assert work.sources is not None and work.pieces is not None
            high = gather.Axis.of(conv, 0).count(down)
            wide = gather.Axis.of(conv, 1).count(min(columns, config.tiles * config.pixels))
            steps = high * np.ceil(wide / gather.MOST_TOGETHER)
            cycles = cycles + work.sources[:, None] * (SOURCE * high * wide)
            cycles = cycles + work.pieces[:, None] * (PIECE * high * wide + STEP * steps)
        return cls(np.repeat(cycles, rights, axis=1))

    def items(self, chunks: int, images: int) -> list[float]:
        """Cycles of each work item."""
        edges = np.arange(chunks) * len(self.cycles) // chunks
        cycles = np.add.reduceat(self.cycles, edges, axis=0) + ITEM
        return [float(each) for each in np.repeat(cycles, images, axis=0).reshape(-1)]


def _source_bytes(reading: Reading, config: TilesConfig, work: Work) -> float:
    """Bytes of activations that a block reads again for each group of outputs."""
    conv, columns = reading.conv, reading.grid[2]
    wide = min(columns, config.tiles * config.pixels)
    if work.gathering is None:
        high = config.rows * conv.stride[0] + conv.kernel[0] - 1
        return float(high * wide * conv.stride[1] * conv.in_channels)
    gathered = gather.Axis.of(conv, 0).count(config.rows) * gather.Axis.of(conv, 1).count(wide)
    return float(gathered * work.gathering.pitch)
