"""The GPU architectures, one row each: how large and how fast an SM is, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
BLOCK_RESERVED = 1 * KIB  # bytes of shared memory that CUDA takes for itself per block


@dataclass(frozen=True)
class Gpu:
    """What tiles are chosen by.

    arch: as nvcc calls it.
    sms: streaming multiprocessors.
    shared_bytes: shared memory of an SM; a block can have all of it but 1 KiB.
    threads: resident threads of an SM.
    dense_rate: multiply-adds of float16 per cycle and SM through `mma.sync`, float32 sums; `mma.sp`
        counts twice as many, dense equivalent.
    group_rate: as `dense_rate`, through `wgmma`; 0 where there is none.
    memory_rate: bytes per cycle and SM from the L2 cache.
    """

    arch: str
    sms: int
    shared_bytes: int
    threads: int
    dense_rate: float
    group_rate: float
    memory_rate: float

    @property
    def block_bytes(self) -> int:
        """Shared memory that one thread block can have."""
        return self.shared_bytes - BLOCK_RESERVED


# Shared memory and threads: CUDA C++ Programming Guide, technical specifications per compute
# capability. Models of one architecture differ in SMs and clocks: one stands for all.
GPUS: tuple[Gpu, ...] = (
    # NVIDIA A100 whitepaper (2020): 108 SMs, 4 tensor cores of 256, L2 of 5120 bytes per cycle.
    Gpu("sm_80", 108, 164 * KIB, 2048, 1024.0, 0.0, 47.0),
    # A10 datasheet (2021): 72 SMs, 125 TFLOP/s at 1.695 GHz, so 4 tensor cores of 128. GeForce
    # cards sum in float32 at half of that. The rate of the L2 is an estimate.
    Gpu("sm_86", 72, 100 * KIB, 1536, 512.0, 0.0, 24.0),
    # L4 datasheet (2023): 58 SMs, 121 TFLOP/s at 2.04 GHz. The rate of the L2 is an estimate.
    Gpu("sm_89", 58, 100 * KIB, 1536, 512.0, 0.0, 24.0),
    # H100 SXM whitepaper (2022): 132 SMs, 4 tensor cores of 512, of which `mma.sync` reaches about
    # 62 % (Luo et al., Benchmarking and Dissecting the NVIDIA Hopper GPU Architecture, 2024).
    Gpu("sm_90a", 132, 228 * KIB, 2048, 1270.0, 2048.0, 40.0),
)


def find_gpu(arch: str) -> Gpu:
    """The row of an architecture."""
    return next(gpu for gpu in GPUS if gpu.arch == arch)
