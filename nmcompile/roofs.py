"""How fast this machine multiplies at best: what a layer's rate is held against."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, lanes, load, splat, store
from nmcompile.kernels.catalog import RoofKind
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.runtime import cpu
from nmcompile.targets import find_target

ACCUMULATORS = 24  # independent sums: more than latency times pipes
BLOCKS = 10  # the buffer: 10 x 24 vectors, 15 KB, stays in L1
REPEATS = 16000
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
        """The roof of a kernel on `threads` cores, taken to be equally fast."""
        return (self.load if kind == "load" else self.fma) * threads


@functools.cache
def measure_roofs() -> Roofs:
    """Measure both on one thread, in about half a second.

    Raises:
        DeviceError: the machine has no AVX-512.
    """
    target = find_target("avx512")
    cpu.require(target.cpu_features, "measuring the roofs")
    functions = {"fma": _emit("fma", loads=False), "load": _emit("load", loads=True)}
    llvm = tvm.target.Target({"kind": "llvm", "mcpu": target.llvm_cpu})
    module = tvm.compile(tvm.IRModule(functions), target=llvm, tir_pipeline=TIR_PIPELINE)
    # Multiplying by 1 and adding 0 keeps every sum a normal number.
    ones_and_zeros = np.array([1, 0], np.float32).repeat(LANES)
    data = tvm.runtime.tensor(np.tile(ones_and_zeros, BLOCKS * ACCUMULATORS // 2))
    out = tvm.runtime.tensor(np.zeros(ACCUMULATORS * LANES, np.float32))
    flops = 2.0 * REPEATS * BLOCKS * ACCUMULATORS * LANES
    best = dict.fromkeys(functions, 0.0)
    for _ in range(RUNS):
        for name in functions:
            start = time.perf_counter()
            module[name](data, out)
            best[name] = max(best[name], flops / (time.perf_counter() - start) * 1e-9)
    return Roofs(best["fma"], best["load"])


def _emit(name: str, loads: bool) -> Any:
    """The TIR function (data, out): `data` holds BLOCKS x ACCUMULATORS vectors."""
    with PrimFuncBuilder(name) as func:
        data = func.tensor("data", (BLOCKS * ACCUMULATORS * LANES,))
        out = func.tensor("out", (ACCUMULATORS * LANES,))
        sums = [T.alloc_buffer((LANES,), scope="local") for _ in range(ACCUMULATORS)]
        for i, acc in enumerate(sums):
            T.buffer_store(acc, splat(0.1 * i), [lanes(0)])
        one, zero = T.bind(load(data, 0)), T.bind(load(data, LANES))
        with T.serial(0, REPEATS):
            with T.serial(0, BLOCKS) as block:
                for i, acc in enumerate(sums):
                    value = acc[lanes(0)]
                    if loads:
                        at = block * (ACCUMULATORS * LANES) + i * LANES
                        value = value + one * load(data, at)
                    else:
                        value = value * one + zero
                    T.buffer_store(acc, value, [lanes(0)])
        for i, acc in enumerate(sums):
            store(out, i * LANES, acc[lanes(0)])
    return func.result().with_attr("global_symbol", name)
