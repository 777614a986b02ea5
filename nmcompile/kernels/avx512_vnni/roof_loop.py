"""The loop that reaches the roof of integer kernels: products of four bytes, on registers alone."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, lanes, store
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, dot, load_bytes
from nmcompile.kernels.prim_func import PrimFuncBuilder

ACCUMULATORS = 24  # independent sums: more than latency times pipes
REPEATS = 160_000

DATA_BYTES = 2 * BYTES
OUT_LANES = ACCUMULATORS * LANES
OPS = 2.0 * REPEATS * ACCUMULATORS * LANES * QUAD  # of one call


def emit_vnni_roof_loop(name: str) -> Any:
    """The TIR function (data, out) of DATA_BYTES int8 and OUT_LANES int32."""
    with PrimFuncBuilder(name) as func:
        data = func.tensor("data", (DATA_BYTES,), "int8")
        out = func.tensor("out", (OUT_LANES,), "int32")
        sums = [T.alloc_buffer((LANES,), "int32", scope="local") for _ in range(ACCUMULATORS)]
        for i, acc in enumerate(sums):
            T.buffer_store(acc, T.broadcast(T.int32(i), LANES), [lanes(0)])
        x, weights = T.bind(load_bytes(data, 0)), T.bind(load_bytes(data, BYTES))
        with T.serial(0, REPEATS):
            for acc in sums:
                T.buffer_store(acc, dot(acc[lanes(0)], x, weights), [lanes(0)])
        for i, acc in enumerate(sums):
            store(out, i * LANES, acc[lanes(0)])
    return func.result().with_attr("global_symbol", name)
