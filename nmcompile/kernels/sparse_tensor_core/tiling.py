"""Which tiles a convolution can run with, and cycles counted for each.

The count is a model: no figure in it was measured on these kernels. It ranks tiles, and the tuner
measures the first of them where a GPU is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nmcompile.kernels.problem import Candidate
from nmcompile.kernels.sparse_tensor_core.tiles import (
    DEPTH,
    TILES,
    WARPGROUP,
    Gemm,
    Method,
    TileConfig,
)
from nmcompile.kernels.spec import Conv2d

MIN_SPLIT_SLICES = 4  # of the depth per part: fewer would not fill the stages
MAX_SPLITS = 16  # the parts are added one by one
START_CYCLES = 2500.0  # of a launch: filling the stages from memory, and what the driver takes
SLICE_CYCLES = 350.0  # of one slice, however small: barrier, ldmatrix and mma one after the other
SHARED_RATE = 128.0  # bytes per cycle of one SM's shared memory
BLOCK_RESERVED = 1024  # bytes of shared memory that CUDA takes for itself per block


@dataclass(frozen=True)
class Gpu:
    """What the model knows of a GPU.

    arch: as nvcc calls it.
    sms: streaming multiprocessors.
    shared_bytes: shared memory of an SM; a block can have all of it but 1 KiB.
    dense_rate: multiply-adds of float16 per cycle and SM through `mma.sync`, float32 sums; `mma.sp`
        counts twice as many, dense equivalent.
    group_rate: as `dense_rate`, through `wgmma`; 0 where there is none.
    memory_rate: bytes per cycle and SM from the L2 cache.
    """

    arch: str
    sms: int
    shared_bytes: int
    dense_rate: float
    group_rate: float
    memory_rate: float


GPUS: tuple[Gpu, ...] = (
    # NVIDIA A100 whitepaper (2020): 108 SMs, 4 tensor cores of 256, L2 of 5120 bytes per cycle.
    Gpu("sm_80", 108, 164 * 1024, 1024.0, 0.0, 47.0),
    # H100 SXM whitepaper (2022): 132 SMs, 4 tensor cores of 512, of which `mma.sync` reaches about
    # 62 % (Luo et al., Benchmarking and Dissecting the NVIDIA Hopper GPU Architecture, 2024).
    Gpu("sm_90a", 132, 228 * 1024, 1270.0, 2048.0, 40.0),
)


def find_gpu(arch: str) -> Gpu:
    """The row of an architecture."""
    return next(gpu for gpu in GPUS if gpu.arch == arch)


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
    """Whether `resident` blocks have room in the shared memory of an SM."""
    room = gemm.config.resident * (gemm.shared_bytes + BLOCK_RESERVED)
    return room <= gpu.shared_bytes


def conv_configs(conv: Conv2d, method: Method, gpu: Gpu) -> Sequence[Candidate]:
    """All tile variants and splits, the fastest by the model first."""
    candidates = []
    for tile in TILES[method]:
        for splits in split_counts(Gemm(conv, tile, method), gpu):
            config: TileConfig = replace(tile, splits=splits)
            gemm = Gemm(conv, config, method)
            if fits(gemm, gpu):
                candidates.append(Candidate(count_cycles(gemm, gpu), config))
    return sorted(candidates, key=lambda candidate: candidate.cycles)
