"""How fast a machine multiplies at best: what a layer's rate is held against.

Timing needs numpy and TVM's runtime only, so that it runs on devices too; compiling does not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nmcompile.runtime import cpu
from nmcompile.runtime.native import native_runtime
from nmcompile.runtime.tensors import from_numpy
from nmcompile.targets import find_target

if TYPE_CHECKING:
    from nmcompile.kernels.avx512_amx.instructions import Product
    from nmcompile.kernels.catalog import RoofKind

TARGETS = ("avx512_amx", "avx512_bf16", "avx512_vnni", "avx512")
"""Whose kernels run under roofs; the first that a machine can run has all that can be measured."""
TILE_ROOFS: Mapping[str, Product] = {"amx_int8": "int8", "amx_bf16": "bfloat16"}
VECTOR = 16  # floats
RUNS = 25  # the fastest counts: others on the machine only slow it down


@dataclass(frozen=True)
class Roofs:
    """GFLOP/s of one core.

    fma: 512-bit multiply-adds of float32 on registers.
    load: one 64-byte aligned load from L1 for each multiply-add.
    vnni: products of bytes in fours, and their sums, on registers; None where the CPU has none.
    bf16: products of bfloat16 in pairs, and their sums, on registers; None where the CPU has none.
    amx_int8, amx_bf16: products of tiles on registers; None where the CPU has none.
    """

    fma: float
    load: float
    vnni: float | None = None
    bf16: float | None = None
    amx_int8: float | None = None
    amx_bf16: float | None = None

    def of(self, kind: RoofKind, threads: int) -> float | None:
        """The roof of a kernel on `threads` cores, taken to be equally fast; None if unknown."""
        known: float | None = getattr(self, kind)
        return None if known is None else known * threads


@dataclass(frozen=True)
class RoofLoop:
    """What has to be known of the functions (data, out) of a library to time them.

    data, out: floats of their arguments.
    operations: of one call of each function, by its name, a field of `Roofs`.
    """

    data: int
    out: int
    operations: Mapping[str, float]


def compile_roofs(target: str) -> tuple[Any, RoofLoop]:
    """Compile the loops for one of `TARGETS`; the library is a TVM executable."""
    import tvm

    from nmcompile.kernels.avx512 import roof_loop
    from nmcompile.kernels.avx512_amx import roof_loop as tiles
    from nmcompile.kernels.avx512_bf16 import roof_loop as brains
    from nmcompile.kernels.avx512_vnni import roof_loop as integers
    from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE

    row, emit = find_target(target), roof_loop.emit_roof_loop
    functions = {"fma": emit("fma", loads=False), "load": emit("load", loads=True)}
    operations = dict.fromkeys(functions, roof_loop.FLOPS)
    if row.integers:
        functions["vnni"] = integers.emit_roof_loop("vnni")
        operations["vnni"] = integers.OPERATIONS
    if row.bfloat16:
        functions["bf16"] = brains.emit_roof_loop("bf16")
        operations["bf16"] = brains.OPERATIONS
    if cpu.TILES in row.cpu_features:
        for kind, product in TILE_ROOFS.items():
            functions[kind] = tiles.emit_roof_loop(kind, product)
            operations[kind] = tiles.OPERATIONS[product]
    module = tvm.compile(
        tvm.IRModule(functions),
        target=tvm.target.Target(row.llvm_options),
        tir_pipeline=TIR_PIPELINE,
    )
    return module, RoofLoop(roof_loop.DATA_FLOATS, roof_loop.OUT_FLOATS, operations)


def time_roofs(module: Any, loop: RoofLoop) -> Roofs:
    """Time the loops of a library on one thread of this machine, in about a tenth of a second."""
    native = native_runtime()
    # Multiplying by 1 and adding 0 keeps every sum a normal number.
    ones_and_zeros = np.array([1, 0], np.float32).repeat(VECTOR)
    data = from_numpy(native, np.tile(ones_and_zeros, loop.data // (2 * VECTOR)))
    out = from_numpy(native, np.zeros(loop.out, np.float32))
    best = dict.fromkeys(loop.operations, 0.0)
    for _ in range(RUNS):
        for name, operations in loop.operations.items():
            function = module[name]
            start = time.perf_counter()
            function(data, out)
            best[name] = max(best[name], operations / (time.perf_counter() - start) * 1e-9)
    return Roofs(**best)


@functools.cache
def measure_roofs() -> Roofs:
    """Compile the loops, and time them on this machine.

    Raises:
        DeviceError: the machine has no AVX-512.
    """
    _, flags = cpu.host()
    able = [name for name in TARGETS if flags.issuperset(find_target(name).cpu_features)]
    target = next(iter(able), TARGETS[-1])
    cpu.require(find_target(target).cpu_features, "measuring the roofs")
    return time_roofs(*compile_roofs(target))
