"""Functions of one byte, and sums of two tensors: 64 values after the other, whatever the shape."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Expr, splat
from nmcompile.kernels.avx512_vnni.channels.frame import declare_ending, tasks, write_sums
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    load_bytes,
    pick_bytes_of_two,
    spread,
    store_bytes,
)
from nmcompile.kernels.integers import IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder

TABLE = 256  # values of a byte


def emit_table(name: str, count: int) -> object:
    """The TIR function (x, table, out)."""
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (count,), "uint8")
        table = func.tensor("table", (TABLE,), "uint8")
        out = func.tensor("out", (count,), "uint8")

        def step(at: Expr, active: int) -> None:
            value = T.bind(load_bytes(x, at, active))
            quarters = [T.bind(load_bytes(table, first)) for first in range(0, TABLE, BYTES)]
            lower, upper = (
                T.bind(pick_bytes_of_two(a, value, b)) for a, b in (quarters[:2], quarters[2:])
            )
            negative = value < T.broadcast(T.int8(0), BYTES)
            store_bytes(out, at, T.Select(negative, upper, lower), active)

        _over_values(count, step)
    return func.result()


def emit_sum(name: str, count: int, epilogue: IntegerEpilogue) -> object:
    """The TIR function (x, offset, scale, steps, residual, [out]); the offset is that of x."""
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", (count,), "uint8")
        ending = declare_ending(func, 1, (count,), epilogue)

        def step(at: Expr, active: int) -> None:
            offset, scale = T.bind(splat(ending.offset[0])), T.bind(splat(ending.scale[0]))
            values = spread(T.bind(load_bytes(x, at, active)))
            write_sums(ending, at, values, offset, scale, active)

        _over_values(count, step)
    return func.result()


def _over_values(count: int, step: Callable[[Expr, int], None]) -> None:
    full, rest = divmod(count, BYTES)
    if full:
        with tasks(full, count) as vector:
            step(T.bind(vector * BYTES), BYTES)
    if rest:
        step(T.int32(full * BYTES), rest)
