"""Positions of maxima or minima along an axis with others behind it, as of scores of classes."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, first_lanes, held, lanes, load, splat
from nmcompile.kernels.avx512.rowwise.sweep import WIDE, over_columns
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Positions


def emit_positions(name: str, spec: Positions) -> Any:
    """The TIR function (x, out): int64, of the first one, or of the first NaN if there is one."""
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", spec.shape)
        out = func.tensor("out", spec.out_shape, "int64")
        x, out = func.flat(x), func.flat(out)

        def block(outer: Expr, first: Expr, count: int) -> None:
            start = T.bind(outer * (spec.length * spec.inner) + first)
            into = T.bind(outer * spec.inner + first)
            actives = [min(LANES, count - first) for first in range(0, count, LANES)]
            places = [lanes(v * LANES) for v in range(len(actives))]
            best = T.alloc_buffer((WIDE,), scope="local")
            found = T.alloc_buffer((WIDE,), "int32", scope="local")
            for v, active in enumerate(actives):
                T.buffer_store(best, load(x, start + v * LANES, active), [places[v]])
                T.buffer_store(found, splat(T.int32(0)), [places[v]])
            with T.serial(1, spec.length) as k:
                for v, active in enumerate(actives):
                    value = held(load(x, start + k * spec.inner + v * LANES, active))
                    known = best[places[v]]
                    ahead = value > known if spec.largest else value < known
                    lost = tirx.all(T.isnan(value), tirx.Not(T.isnan(known)))
                    better = tirx.any(ahead, lost)
                    T.buffer_store(found, T.Select(better, splat(k), found[places[v]]), [places[v]])
                    T.buffer_store(best, T.Select(better, value, known), [places[v]])
            for v, active in enumerate(actives):
                position = T.Cast(f"int64x{LANES}", found[places[v]])
                at = lanes(into + v * LANES)
                if active == LANES:
                    T.buffer_store(out, position, [at])
                else:
                    T.evaluate(tirx.op.masked_store(out, position, at, first_lanes(active)))

        over_columns(spec.outer, spec.inner, block)
    return func.result()
