"""Softmax, or its logarithm, along one axis: the last one, or one with others behind it."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    exp_below,
    extreme,
    first_lanes,
    lanes,
    load,
    over_lanes,
    splat,
    store,
)
from nmcompile.kernels.avx512.rowwise.sweep import AT_ONCE, WIDE, over_columns, sweep
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Softmax

INFINITY = float("inf")


def emit_softmax(name: str, spec: Softmax) -> Any:
    """The TIR function (x, out)."""
    with PrimFuncBuilder(name) as func:
        x, out = func.tensor("x", spec.shape), func.tensor("out", spec.shape)
        x, out = func.flat(x), func.flat(out)
        if spec.inner == 1:
            with T.parallel(0, spec.outer) as row:
                _row(spec, x, out, T.bind(row * spec.length))
        else:
            _columns(spec, x, out)
    return func.result()


def _row(spec: Softmax, x: Buffer, out: Buffer, start: Expr) -> None:
    """One row of consecutive numbers.

    NaN is left out of the maximum, and makes a NaN of its own exponential, and so of the sum.
    """
    length = spec.length
    best = T.alloc_buffer((AT_ONCE * LANES,), scope="local")
    sums = T.alloc_buffer((AT_ONCE * LANES,), scope="local")
    places = [lanes(lane * LANES) for lane in range(AT_ONCE)]
    for place in places:
        T.buffer_store(best, splat(-INFINITY), [place])
        T.buffer_store(sums, splat(0.0), [place])

    def value(at: Expr, active: int) -> Expr:
        found = load(x, start + at, active)
        if active == LANES:
            return found
        return T.bind(T.Select(first_lanes(active), found, splat(-INFINITY)))

    def compare(at: Expr, lane: int, active: int) -> None:
        found = extreme("max", value(at, active), best[places[lane]])
        T.buffer_store(best, found, [places[lane]])

    sweep(length, compare)
    pairs = [extreme("max", best[places[k]], best[places[k + 2]]) for k in (0, 1)]
    top = over_lanes(extreme("max", *pairs), lambda a, b: extreme("max", a, b))

    def power(at: Expr, lane: int, active: int) -> None:
        weight = T.bind(exp_below(T.bind(value(at, active) + top * splat(-1.0))))
        if not spec.log:
            store(out, start + at, weight, active)
        if active < LANES:
            weight = T.Select(first_lanes(active), weight, splat(0.0))
        T.buffer_store(sums, sums[places[lane]] + weight, [places[lane]])

    sweep(length, power)
    total = T.bind((sums[places[0]] + sums[places[1]]) + (sums[places[2]] + sums[places[3]]))
    total = over_lanes(total, lambda a, b: a + b)
    if spec.log:
        logarithm = T.bind(splat(tirx.op.log(T.Shuffle([total], [0]))))
    else:
        inverse = T.bind(splat(1.0) / total)

    def finish(at: Expr, lane: int, active: int) -> None:
        if spec.log:
            value = (load(x, start + at, active) - top) - logarithm
        else:
            value = load(out, start + at, active) * inverse
        store(out, start + at, value, active)

    sweep(length, finish)


def _columns(spec: Softmax, x: Buffer, out: Buffer) -> None:
    """Vectors along the axes behind the one that is summed over."""

    def block(outer: Expr, first: Expr, count: int) -> None:
        start = T.bind(outer * (spec.length * spec.inner) + first)
        actives = [min(LANES, count - first) for first in range(0, count, LANES)]
        best = T.alloc_buffer((WIDE,), scope="local")
        sums = T.alloc_buffer((WIDE,), scope="local")
        places = [lanes(v * LANES) for v in range(len(actives))]
        for place in places:
            T.buffer_store(best, splat(-INFINITY), [place])
            T.buffer_store(sums, splat(0.0), [place])
        with T.serial(0, spec.length) as k:
            for v, active in enumerate(actives):
                found = load(x, start + k * spec.inner + v * LANES, active)
                T.buffer_store(best, extreme("max", found, best[places[v]]), [places[v]])
        with T.serial(0, spec.length) as k:
            for v, active in enumerate(actives):
                at = T.bind(start + k * spec.inner + v * LANES)
                weight = exp_below(T.bind(load(x, at, active) + best[places[v]] * splat(-1.0)))
                weight = T.bind(weight)
                if not spec.log:
                    store(out, at, weight, active)
                T.buffer_store(sums, sums[places[v]] + weight, [places[v]])
        for place in places:
            value = tirx.op.log(sums[place]) if spec.log else splat(1.0) / sums[place]
            T.buffer_store(sums, value, [place])
        with T.serial(0, spec.length) as k:
            for v, active in enumerate(actives):
                at = T.bind(start + k * spec.inner + v * LANES)
                if spec.log:
                    value = (load(x, at, active) - best[places[v]]) - sums[places[v]]
                else:
                    value = load(out, at, active) * sums[places[v]]
                store(out, at, value, active)

    over_columns(spec.outer, spec.inner, block)
