"""What a step of an LSTM or GRU makes of its sums: gates, and the state that they let through."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Expr, exp_below, held, splat

_SMALL = 0.25
_TANGENT = (62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)
"""tanh(x) / x by powers of x^2, the highest first: within 1e-8 up to |x| = `_SMALL`."""


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x) of a float32 vector, about 3e-7 relative; NaN stays NaN."""
    x = held(x)
    power = held(exp_below(T.bind(T.abs(x) * splat(-1.0))))
    above = held(splat(1.0) / (splat(1.0) + power))
    return held(T.Select(x < splat(0.0), power * above, above))


def tangent(x: Expr) -> Expr:
    """tanh(x) of a float32 vector, about 4e-7 relative; NaN stays NaN."""
    x = held(x)
    power = held(exp_below(T.bind(T.abs(x) * splat(-2.0))))
    size = T.bind((splat(1.0) - power) / (splat(1.0) + power))
    sign = T.reinterpret("int32x16", x) & splat(T.int32(-(1 << 31)))
    large = T.reinterpret("float32x16", T.reinterpret("int32x16", size) | sign)
    square = held(x * x)
    small: Expr = splat(_TANGENT[0])
    for coefficient in _TANGENT[1:]:
        small = T.bind(small * square + splat(coefficient))
    return held(T.Select(T.abs(x) < splat(_SMALL), x * small, large))


def lstm(sums: Sequence[Expr], cell: Expr) -> tuple[Expr, Expr]:
    """The state and the cell behind the sums of gates i, o, f, c."""
    kept = T.bind(sigmoid(sums[2]) * cell)
    cell = held(kept + sigmoid(sums[0]) * tangent(sums[3]))
    return T.bind(sigmoid(sums[1]) * tangent(cell)), cell


def gru(given: Sequence[Expr], sums: Sequence[Expr], state: Expr) -> Expr:
    """The state behind gates z, r, h: `given` of the input, `sums` of the state before."""
    reset = sigmoid(given[1] + sums[1])
    new = tangent(given[2] + reset * sums[2])
    return T.bind(new + sigmoid(given[0] + sums[0]) * (state - new))
