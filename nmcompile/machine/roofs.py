"""How fast a machine multiplies at best: what a layer's rate is held against.

Timing needs numpy and TVM's runtime only, so that it runs on devices too; compiling does not.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nmcompile.runtime import cpu
from nmcompile.runtime.native import native_runtime
from nmcompile.runtime.tensors import from_numpy
from nmcompile.targets import find_target

if TYPE_CHECKING:
    from nmcompile.kernels.catalog import RoofKind

TARGET = "avx512"
VECTOR = 16  # floats
RUNS = 25  # the fastest counts: others on the machine only slow it down


@dataclass(frozen=True)
class Roofs:
    """GFLOP/s of one core, float32.

    fma: 512-bit multiply-adds on registers.
    load: one 64-byte aligned load from L1 for each multiply-add.
    """

    fma: float
    load: float

    def of(self, kind: RoofKind, threads: int) -> float:
        """The roof of a float32 kernel on `threads` cores, taken to be equally fast."""
        return {"fma": self.fma, "load": self.load}[kind] * threads


@dataclass(frozen=True)
class RoofLoop:
    """What has to be known of the functions `fma` and `load` (data, out) of a library to time them.

    data, out: floats of their arguments.
    flops: of one call.
    """

    data: int
    out: int
    flops: float


def compile_roofs() -> tuple[Any, RoofLoop]:
    """Compile both loops; the library is a TVM executable."""
    import tvm

    from nmcompile.kernels.avx512 import roof_loop
    from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE

    emit = roof_loop.emit_roof_loop
    module = tvm.compile(
        tvm.IRModule({"fma": emit("fma", loads=False), "load": emit("load", loads=True)}),
        target=tvm.target.Target({"kind": "llvm", "mcpu": find_target(TARGET).llvm_cpu}),
        tir_pipeline=TIR_PIPELINE,
    )
    return module, RoofLoop(roof_loop.DATA_FLOATS, roof_loop.OUT_FLOATS, roof_loop.FLOPS)


def time_roofs(module: Any, loop: RoofLoop) -> Roofs:
    """Time the loops of a library on one thread of this machine, in about a tenth of a second."""
    native = native_runtime()
    # Multiplying by 1 and adding 0 keeps every sum a normal number.
    ones_and_zeros = np.array([1, 0], np.float32).repeat(VECTOR)
    data = from_numpy(native, np.tile(ones_and_zeros, loop.data // (2 * VECTOR)))
    out = from_numpy(native, np.zeros(loop.out, np.float32))
    best = {"fma": 0.0, "load": 0.0}
    for _ in range(RUNS):
        for name in best:
            function = module[name]
            start = time.perf_counter()
            function(data, out)
            best[name] = max(best[name], loop.flops / (time.perf_counter() - start) * 1e-9)
    return Roofs(best["fma"], best["load"])


@functools.cache
def measure_roofs() -> Roofs:
    """Compile the loops, and time them on this machine.

    Raises:
        DeviceError: the machine has no AVX-512.
    """
    cpu.require(find_target(TARGET).cpu_features, "measuring the roofs")
    return time_roofs(*compile_roofs())
