"""Group norm: (x - mean) / sqrt(variance + epsilon) over groups of channels; instance norm."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    first_lanes,
    held,
    lanes,
    load,
    splat,
    store,
)
from nmcompile.kernels.avx512.rowwise.sweep import AT_ONCE, mean_over, sweep
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Activation, GroupNorm

PIECE = 64 * AT_ONCE * LANES  # floats that are added up by themselves; they stay in L1


def emit_group_norm(name: str, spec: GroupNorm, activation: Activation) -> Any:
    """The TIR function (x, [scale], [shift], out)."""
    length = spec.channels * spec.pixels
    with PrimFuncBuilder(name) as func:
        x = func.tensor("x", spec.shape)
        scale = func.tensor("scale", spec.shape[1:2]) if spec.scale else None
        shift = func.tensor("shift", spec.shape[1:2]) if spec.shift else None
        out = func.tensor("out", spec.shape)
        x, out = func.flat(x), func.flat(out)
        with T.parallel(0, math.prod(spec.shape) // length) as row:
            start = T.bind(row * length)
            mean, variance = _moments(x, start, length)
            centre = held(mean * splat(-1.0))
            factor = held(splat(1.0) / tirx.op.sqrt(variance + splat(spec.epsilon)))
            with T.serial(0, spec.channels) as c:
                channel = T.bind(row % spec.groups * spec.channels + c)
                first = T.bind(start + c * spec.pixels)
                gain = factor if scale is None else held(factor * splat(scale[channel]))
                summand = None if shift is None else held(splat(shift[channel]))

                def finish(at: Expr, lane: int, active: int) -> None:
                    value = (load(x, first + at, active) + centre) * gain
                    if summand is not None:
                        value = value + summand
                    store(out, first + at, activate(value, activation), active)

                sweep(spec.pixels, finish)
    return func.result()


def _moments(x: Buffer, start: Expr, length: int) -> tuple[Expr, Expr]:
    """Mean and variance of a row, in every lane.

    Of each piece by itself, and those joined as Chan, Golub and LeVeque do (The American
    Statistician 37, 1983): so errors do not grow with the row, and each piece is read twice while
    it lies in L1.
    """
    pieces, rest = divmod(length, PIECE)
    if pieces + bool(rest) == 1:
        return _of_piece(x, start, length)
    joined: Buffer = T.alloc_buffer((2 * LANES,), scope="local")
    places = [lanes(0), lanes(LANES)]
    for place in places:
        T.buffer_store(joined, splat(0.0), [place])

    def join(first: Expr, count: int, share: Expr) -> None:
        """Another piece, which is such a share of what has been seen with it."""
        mean, variance = _of_piece(x, first, count)
        away = held(mean + joined[places[0]] * splat(-1.0))
        others = held(splat(1.0) + share * splat(-1.0))
        total = joined[places[1]] * others + variance * share + away * away * (share * others)
        T.buffer_store(joined, total, [places[1]])
        T.buffer_store(joined, joined[places[0]] + away * share, [places[0]])

    with T.serial(0, pieces) as piece:
        share = held(splat(1.0) / splat(T.Cast("float32", piece + 1)))
        join(T.bind(start + piece * PIECE), PIECE, share)
    if rest:
        join(T.bind(start + pieces * PIECE), rest, splat(rest / length))
    return joined[places[0]], joined[places[1]]


def _of_piece(x: Buffer, first: Expr, count: int) -> tuple[Expr, Expr]:
    """Mean and variance of consecutive numbers; the variance in a second sweep."""
    mean = held(mean_over(count, lambda at, active: load(x, first + at, active)))
    centre = held(mean * splat(-1.0))

    def square(at: Expr, active: int) -> Expr:
        value = T.bind(load(x, first + at, active) + centre)
        if active < LANES:
            value = T.bind(T.Select(first_lanes(active), value, splat(0.0)))
        return value * value

    return mean, held(mean_over(count, square))
