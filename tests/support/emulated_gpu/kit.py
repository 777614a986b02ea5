"""A kit whose machine code is the emulator's, and a driver library that runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu_kit import write_kit
from nmcompile.kernels.cuda.build import CudaSource
from nmcompile.kernels.sparse_tensor_core.tiles import Method
from nmcompile.kernels.spec import Conv2d
from tests.support.cuda_emulator.run import emulated_library

HERE = Path(__file__).parent
# Tiny layers: a 3x3 whose depth is split, a 1x1, and a stem that stays dense.
SHAPES = (
    (Conv2d(1, 64, 6, 6, 32, (3, 3), padding=(1, 1, 1, 1)), 3),
    (Conv2d(1, 64, 5, 5, 64, (1, 1)), 2),
    (Conv2d(1, 3, 9, 9, 16, (3, 3), (2, 2), (1, 1, 1, 1)), 1),
)
MEASURED: Mapping[Method, int] = {"wgmma": 1, "sparse": 1, "dense": 1}


class Emulated:
    """A compiler whose machine code names a library of the emulator.

    modes: by the number of the kernel, in order of compilation; see `driver.c`.
    """

    workers = 1  # the emulator's own compilations follow each other

    def __init__(self, modes: Mapping[int, str]) -> None:
        self._modes, self._count = modes, 0

    def compile(self, source: CudaSource, arch: str) -> tuple[bytes, int]:
        mode = self._modes.get(self._count, "run")
        self._count += 1
        kernels = [f"{launch.kernel} {len(launch.arguments)}" for launch in source.launches]
        words = [str(emulated_library(source)), mode, *kernels]
        return " ".join(words).encode() + b"\0", 64


def emulated_kit(folder: Path, modes: Mapping[int, str]) -> Path:
    """Write a kit for sm_90a: tiny layers of batch 2, no models."""
    write_kit(
        folder / "kit",
        ["sm_90a"],
        [2],
        SHAPES,
        models=False,
        compiler=Emulated(modes),
        measured=MEASURED,
    )
    return folder / "kit"


def emulated_driver(folder: Path) -> Path:
    """A folder with libcuda.so.1."""
    library = folder / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(HERE / "driver.c")]
    subprocess.run([*command, "-ldl"], check=True)
    return folder
