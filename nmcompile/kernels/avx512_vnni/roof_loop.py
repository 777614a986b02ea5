"""Loops that reach the roof of products of four bytes a lane: on registers alone."""

from __future__ import annotations

import contextlib
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512 import roof_loop
from nmcompile.kernels.avx512.emit import LANES, lanes, load, splat, store
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, dot
from nmcompile.kernels.avx512_vnni.lanes.inner_loops import Dot
from nmcompile.kernels.prim_func import PrimFuncBuilder

OPERATIONS = roof_loop.FLOPS * QUAD  # of one call


def emit_roof_loop(
    name: str,
    product: Dot = dot,
    sums: str = "int32",
    instructions: contextlib.AbstractContextManager[object] | None = None,
) -> Any:
    """The TIR function (data, out) of as many floats as those of the float32 loops.

    Args:
        name: of the function.
        product: what multiplies, by default `vpdpbusd`.
        sums: the element type of what it adds to.
        instructions: the frame it needs.
    """
    with PrimFuncBuilder(name) as func:
        data = func.tensor("data", (roof_loop.DATA_FLOATS,))
        out = func.tensor("out", (roof_loop.OUT_FLOATS,))
        with instructions or contextlib.nullcontext():
            held = [
                T.alloc_buffer((LANES,), sums, scope="local") for _ in range(roof_loop.ACCUMULATORS)
            ]
            for i, acc in enumerate(held):
                first = T.int32(i) if sums == "int32" else T.float32(i)
                T.buffer_store(acc, splat(first), [lanes(0)])
            x, weights = (
                T.bind(T.reinterpret(f"int8x{BYTES}", load(data, at))) for at in (0, LANES)
            )
            with T.serial(0, roof_loop.REPEATS):
                with T.serial(0, roof_loop.BLOCKS):
                    for acc in held:
                        T.buffer_store(acc, product(acc[lanes(0)], x, weights), [lanes(0)])
            for i, acc in enumerate(held):
                store(out, i * LANES, T.reinterpret(f"float32x{LANES}", acc[lanes(0)]))
    return func.result().with_attr("global_symbol", name)
