"""Loops that reach a roof of the machine: multiply-adds alone, and with a load from L1 each."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, lanes, load, splat, store
from nmcompile.kernels.prim_func import PrimFuncBuilder

ACCUMULATORS = 24  # independent sums: more than latency times pipes
BLOCKS = 10  # the buffer: 10 x 24 vectors, 15 KB, stays in L1
REPEATS = 16000

DATA_FLOATS = BLOCKS * ACCUMULATORS * LANES
OUT_FLOATS = ACCUMULATORS * LANES
FLOPS = 2.0 * REPEATS * DATA_FLOATS  # of one call


def emit_roof_loop(name: str, loads: bool) -> Any:
    """The TIR function (data, out) of DATA_FLOATS and OUT_FLOATS."""
    with PrimFuncBuilder(name) as func:
        data = func.tensor("data", (DATA_FLOATS,))
        out = func.tensor("out", (OUT_FLOATS,))
        sums = [T.alloc_buffer((LANES,), scope="local") for _ in range(ACCUMULATORS)]
        for i, acc in enumerate(sums):
            T.buffer_store(acc, splat(0.1 * i), [lanes(0)])
        one, zero = T.bind(load(data, 0)), T.bind(load(data, LANES))
        with T.serial(0, REPEATS):
            with T.serial(0, BLOCKS) as block:
                for i, acc in enumerate(sums):
                    value = acc[lanes(0)]
                    if loads:
                        value = value + one * load(data, block * OUT_FLOATS + i * LANES)
                    else:
                        value = value * one + zero
                    T.buffer_store(acc, value, [lanes(0)])
        for i, acc in enumerate(sums):
            store(out, i * LANES, acc[lanes(0)])
    return func.result().with_attr("global_symbol", name)
