"""A loop that reaches the roof of the tile unit: products on registers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512 import roof_loop
from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_amx.instructions import ROWS, SUMS, Hardware, Product, hold_whole
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.prim_func import PrimFuncBuilder

REPEATS = 2000
OPERATIONS: Mapping[Product, int] = {
    "int8": 2 * REPEATS * SUMS * ROWS * LANES * BYTES,
    "bfloat16": REPEATS * SUMS * ROWS * LANES * BYTES,
}
"""Of one call."""


def emit_roof_loop(name: str, product: Product) -> Any:
    """The TIR function (data, out) of as many floats as those of the float32 loops."""
    activations, weights = (4, 5), (6, 7)
    unit = Hardware(activations, weights, "int32")
    with PrimFuncBuilder(name) as func:
        func.tensor("data", (roof_loop.DATA_FLOATS,))
        out = func.tensor("out", (roof_loop.OUT_FLOATS,))
        zeros = hold_whole(T.alloc_buffer((ROWS * BYTES,), "int32", scope="local", align=BYTES))
        unit.configure(ROWS, BYTES)
        unit.zero(0)
        unit.store(0, zeros, 0)
        for tile in range(SUMS):
            unit.zero(tile)
        for tile in (*activations, *weights):
            unit.load(tile, zeros, 0, BYTES)
        with T.serial(0, REPEATS):
            for tile in range(SUMS):
                unit.multiply(tile, activations[tile // 2], weights[tile % 2], product)
        unit.store(0, zeros, 0)
        T.buffer_store(out, T.Cast("float32", zeros[0]), [0])
        unit.release()
    return func.result().with_attr("global_symbol", name)
