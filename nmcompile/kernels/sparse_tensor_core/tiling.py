"""Which tiles a convolution can run with, and cycles counted for each.

The count is a model: no figure in it was measured on these kernels. It ranks tiles, and the tuner
measures the first of them where a GPU is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.sparse_tensor_core.gpus import BLOCK_RESERVED, Gpu
from nmcompile.kernels.sparse_tensor_core.tiles import (
    DEPTH,
    WARPGROUP,
    Gemm,
    Method,
    TileConfig,
    tiles_of,
)
from nmcompile.kernels.spec import Conv2d

MIN_SPLIT_SLICES = 4  # of the depth per part: fewer would not fill the stages
MAX_SPLITS = 16  # the parts are added one by one
START_CYCLES = 2500.0  # of a launch: filling the stages from memory, and what the driver takes
SLICE_CYCLES = 350.0  # of one slice, however small: barrier, ldmatrix and mma one after the other
SHARED_RATE = 128.0  # bytes per cycle of one SM's shared memory


def count_cycles(gemm: Gemm, gpu: Gpu) -> float:
    """Cycles of the GPU's clock that one call takes, by the model.

    Blocks run in waves. Within one, the blocks of an SM share its tensor cores, shared memory and
    L2 bandwidth, and the slowest of these counts; a slice never takes less than its latency.
    """
    config = gemm.config
    blocks = gemm.tiles * config.splits
    on_sm = min(config.resident, -(-blocks // gpu.sms))
    waves = -(-blocks // (gpu.sms * on_sm))
    dense_rate = gpu.group_rate if gemm.method == "wgmma" else gpu.dense_rate
    multiply = config.channels * config.pixels * DEPTH / (dense_rate * (2 if gemm.sparse else 1))
    groups = config.channels // WARPGROUP if gemm.method == "wgmma" else config.warps[0]
    reads = gemm.weight_bytes * config.warps[1] + gemm.pixel_bytes * groups
    shared = (gemm.stage_bytes + reads) / SHARED_RATE
    memory = gemm.stage_bytes / gpu.memory_rate
    per_slice = max(SLICE_CYCLES, on_sm * max(multiply, shared, memory))
    output_bytes = config.channels * config.pixels * 2
    store = on_sm * (output_bytes * 2 / gpu.memory_rate + output_bytes * 4 / SHARED_RATE)
    cycles = START_CYCLES + waves * (gemm.split_slices * per_slice + store)
    if config.splits > 1:  # the sums of all parts to memory and back, by a launch of its own
        rounds = -(-gemm.tiles // gpu.sms)
        part = config.channels * config.pixels * 4 / gpu.memory_rate
        cycles += START_CYCLES + part * (waves * on_sm + rounds * config.splits)
    return cycles


def split_counts(gemm: Gemm, gpu: Gpu) -> list[int]:
    """Parts of the depth worth trying: one, and what gives every SM one or two blocks."""
    counts = {1}
    for blocks in (gpu.sms, 2 * gpu.sms):
        wanted = min(blocks // gemm.tiles, gemm.slices // MIN_SPLIT_SLICES, MAX_SPLITS)
        if wanted > 1:
            # As many as are not empty when all but the last are equally long.
            counts.add(-(-gemm.slices // -(-gemm.slices // wanted)))
    return sorted(counts)


def fits(gemm: Gemm, gpu: Gpu) -> bool:
    """Whether an SM has room for `resident` blocks: their shared memory and their threads."""
    resident = gemm.config.resident
    room = resident * (gemm.shared_bytes + BLOCK_RESERVED)
    return room <= gpu.shared_bytes and resident * gemm.config.threads <= gpu.threads


def conv_configs(conv: Conv2d, method: Method, gpu: Gpu) -> Sequence[Candidate]:
    """All tile variants and splits, the fastest by the model first."""
    candidates = []
    for tile in tiles_of(method, gpu):
        for splits in split_counts(Gemm(conv, tile, method), gpu):
            config: TileConfig = replace(tile, splits=splits)
            gemm = Gemm(conv, config, method)
            if fits(gemm, gpu):
                candidates.append(Candidate(count_cycles(gemm, gpu), config))
    return sorted(candidates, key=lambda candidate: candidate.cycles)
