"""Choice of tile sizes for Winograd convolutions, in the cycles that `tiling` counts for others."""

from __future__ import annotations

import math

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512.panel.tiling import (
    L1_PANEL_BYTES,
    LIST_OVERHEAD,
    REGISTERS,
    beyond_l1,
    row_cycles,
)
from nmcompile.kernels.avx512.winograd.config import Tiling, WinogradConfig, sides_of
from nmcompile.kernels.cores import cached_per_cores, cores
from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.spec import Conv2d

MAX_VECTORS = 6
DENSE_LIST = 16  # output channels whose weights lie side by side where there are no lists
CYCLES_PER_STEP = 0.7  # of a load, shuffle, addition or store of a transform, measured
L2_BYTES_PER_CYCLE = 32.0
WEIGHT_BYTES_PER_CYCLE = 8.0  # from memory, whatever the number of threads
CACHED_BYTES = 1 << 20  # weights that stay in a cache from one block to the next
# Transformed inputs and sums of a block: bytes that L2 and a core's part of L3 hold, and the bytes
# per cycle at which more is written and read back, measured.
SPILLS = ((1 << 20, 64.0), (4 << 20, 12.0))
MAX_SCRATCH_BYTES = 64 << 20  # of a block with more than one row of tiles: large images
WAKE_CYCLES = 4000.0  # to share one step of a block among threads
IMAGE_TILES = 64  # tiles up to which images of a batch are joined: four vectors


@cached_per_cores
def winograd_configs(
    conv: Conv2d, list_outputs: int, density: float, dense: bool
) -> tuple[Candidate, ...]:
    """Tile sizes, ranked; `list_outputs` channels share a list of `density` x channels entries."""
    found = []
    outputs = list_outputs
    while outputs:
        for side in sides_of(conv):
            for rows, images in _blocks(conv, side):
                for vectors in range(1, MAX_VECTORS + 1):
                    if outputs * vectors + vectors + 1 > REGISTERS:
                        break
                    for split in (True, False):
                        config = WinogradConfig(
                            side, rows, images, vectors, outputs, list_outputs, dense, split
                        )
                        tiling = Tiling(conv, config)
                        if vectors > 1 and vectors > tiling.vectors:
                            continue
                        if rows > 1 and _scratch_bytes(tiling) > MAX_SCRATCH_BYTES:
                            continue
                        found.append(Candidate(_cycles(tiling, density), config))
        outputs = outputs // 2 if outputs % 2 == 0 else 0
    return tuple(sorted(found, key=lambda candidate: candidate.cycles))


def _blocks(conv: Conv2d, side: int) -> list[tuple[int, int]]:
    """(rows of tiles, images) worth trying."""
    height, width = -(-conv.out_height // side), -(-conv.out_width // side)
    rows = {height, -(-height // 2), -(-height // 4), 4, 3, 2, 1}
    found = [(r, 1) for r in sorted(rows) if r <= height]
    for images in (IMAGE_TILES // (height * width), 2 * IMAGE_TILES // (height * width)):
        if 1 < min(images, conv.batch):
            found.append((height, min(images, conv.batch)))
    return list(dict.fromkeys(found))


def _scratch_bytes(tiling: Tiling) -> int:
    """Memory for the transformed inputs and the sums of one block."""
    rows = tiling.conv.in_channels * tiling.phases + tiling.padded_outputs
    return 4 * tiling.positions * rows * tiling.vectors * LANES


def _cycles(tiling: Tiling, density: float) -> float:
    """Geometric mean of the cycles on one thread and on all cores, as in `tiling.time_of`."""
    conv, config = tiling.conv, tiling.config
    side, images, rows = config.side, config.images, config.rows * config.side
    chunks = -(-tiling.width // LANES)
    in_rows = rows + tiling.window - 1
    staging = tiling.span * in_rows * chunks * (2 * tiling.stride * side + 2)
    steps = conv.in_channels * tiling.phases * images * (
        staging + 5 * tiling.positions * tiling.image_vectors
    ) + conv.out_channels * images * (
        4 * tiling.positions * tiling.image_vectors + rows * chunks * side * (side + 3)
    )
    entries = conv.in_channels * tiling.phases * density
    matrix_bytes = 4 * conv.in_channels * tiling.phases * tiling.vectors * LANES
    beyond = beyond_l1(matrix_bytes)  # lines that every list loads from L2
    # Weights of one position, which every run of vectors reads again: from L2 if they do not stay
    # in L1 beside the inputs.
    streamed = 4 * entries * tiling.padded_outputs > L1_PANEL_BYTES // 2
    reread = 4 * config.outputs / L2_BYTES_PER_CYCLE if streamed else 0.0
    list_cycles = 0.0
    for shape, count, _ in tiling.shapes:
        row = row_cycles(shape.cost, config.outputs) + beyond * shape.vectors + reread
        list_cycles += count * (entries * row + LIST_OVERHEAD + config.outputs * shape.vectors)
    parts = tiling.padded_outputs / config.outputs
    work = steps * CYCLES_PER_STEP + tiling.positions * parts * list_cycles
    weight_bytes = 4 * tiling.positions * tiling.padded_outputs * entries
    scratch = _scratch_bytes(tiling)
    work += sum(max(0, scratch - size) / rate for size, rate in SPILLS)
    passes = tiling.blocks if weight_bytes > CACHED_BYTES else 1
    memory = passes * weight_bytes / WEIGHT_BYTES_PER_CYCLE
    threads = cores()
    one = max(work * tiling.blocks, memory)
    if config.split_blocks:
        many = max(work * -(-tiling.blocks // threads), memory)
    else:
        many = max(work * tiling.blocks / threads, memory) + 3 * WAKE_CYCLES * tiling.blocks
    return math.sqrt(one * many)
