"""A loop that reaches the roof of integer products: `vpdpbusd` on registers alone."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512 import roof_loop
from nmcompile.kernels.avx512.emit import LANES, lanes, load, splat, store
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, dot
from nmcompile.kernels.prim_func import PrimFuncBuilder

OPERATIONS = roof_loop.FLOPS * QUAD  # of one call


def emit_roof_loop(name: str) -> Any:
    """The TIR function (data, out) of as many floats as those of the float32 loops."""
    with PrimFuncBuilder(name) as func:
        data = func.tensor("data", (roof_loop.DATA_FLOATS,))
        out = func.tensor("out", (roof_loop.OUT_FLOATS,))
        sums = [
            T.alloc_buffer((LANES,), "int32", scope="local") for _ in range(roof_loop.ACCUMULATORS)
        ]
        for i, acc in enumerate(sums):
            T.buffer_store(acc, splat(T.int32(i)), [lanes(0)])
        x, weights = (T.bind(T.reinterpret(f"int8x{BYTES}", load(data, at))) for at in (0, LANES))
        with T.serial(0, roof_loop.REPEATS):
            with T.serial(0, roof_loop.BLOCKS):
                for acc in sums:
                    T.buffer_store(acc, dot(acc[lanes(0)], x, weights), [lanes(0)])
        for i, acc in enumerate(sums):
            store(out, i * LANES, T.reinterpret(f"float32x{LANES}", acc[lanes(0)]))
    return func.result().with_attr("global_symbol", name)
