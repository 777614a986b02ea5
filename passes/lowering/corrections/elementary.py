"""Exponentials, tangents, error functions and powers as arithmetic, which LLVM vectorises.

TVM leaves them to the C library, one call for each number. All are of float32. Relative to its
value they are within 1e-7 of an exponential, 2e-7 of a sigmoid, 3e-7 of a tangent and 1e-6 of erf
up to 1/4, beyond which that is within 3e-7 of 1. NaN stays NaN, infinities have their limits;
numbers whose exponential is subnormal become 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

Expr = Any

SMALL = 0.25  # below, odd functions by their series: what is taken from 1 would be lost
TANH_IS_1 = 9.01  # from here on, rounded
HIGHEST, LOWEST = 88.722839, -87.336544  # logarithms of the largest and smallest normal number


def as_arithmetic(func: Any) -> Any:
    """A TIR function that computes the same without the C library.

    One that rounds to bfloat16 stays as it is: TVM loses track of its values where they are bound.
    """
    stop = tvm_ffi.VisitInterrupt()

    def visit(cast: Any) -> Any:
        return stop if "bfloat16" in (str(cast.ty.dtype), str(cast.value.ty.dtype)) else None

    if tvm_ffi.structural_walk(func.body, (tirx.Cast, visit)) is not None:
        return func
    return func.with_body(tvm_ffi.structural_map(func.body, ((Call,), _rewritten)))


def has_arithmetic(block: Any) -> bool:
    """Whether a block computes one of these functions."""
    stop = tvm_ffi.VisitInterrupt()
    return tvm_ffi.structural_walk(block.body, (tirx.Let, lambda let: stop)) is not None


def _rewritten(call: Expr) -> Expr:
    name = str(getattr(call.op, "name", "")).removeprefix("tirx.")
    if str(call.ty.dtype) != "float32":
        return call
    if name == "pow":
        return _power(call)
    function = _FUNCTIONS.get(name)
    return call if function is None else _with(call.args[0], function)


def _with(value: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """A function of a value that is computed once."""
    var = tirx.Var("x", "float32")
    return tirx.Let(var, value, function(var))


def _number(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def _polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """The highest first."""
    total: Expr = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + _number(coefficient)
    return total


def _exp(x: Expr) -> Expr:
    """Of x = k ln 2 + r with |r| <= ln 2 / 2: e^r by a polynomial, to whose exponent k is added.

    Between the bounds of x both stay normal numbers: e^r is below 1 where k is 128, and not where
    it is -126.
    """

    def scaled(k: Expr) -> Expr:
        # ln 2 in two parts, so that k times the first is exact.
        r = x + k * _number(-0.693359375) + k * _number(2.12194440e-4)
        power = _with(r, lambda r: _polynomial(r, _EXP))
        exponent = tirx.Cast("int32", k) << tirx.IntImm("int32", 23)
        return tirx.op.reinterpret("float32", tirx.op.reinterpret("int32", power) + exponent)

    k = tirx.op.floor(x * _number(1 / math.log(2)) + _number(0.5))
    normal = _with(k, scaled)
    below = tirx.Select(x < _number(LOWEST), _number(0.0), normal)
    return tirx.Select(x > _number(HIGHEST), _number(math.inf), below)


_EXP = (1.38145e-3, 8.36875e-3, 4.166839e-2, 0.1666652, 0.49999993, 1.0, 1.0)
"""e^r for |r| <= ln 2 / 2, the highest power first: within 3e-9 where it is computed exactly."""


def _sigmoid(x: Expr) -> Expr:
    return _number(1.0) / (_number(1.0) + _with(x * _number(-1.0), _exp))


def _odd(x: Expr, series: tuple[float, ...], beyond: Expr) -> Expr:
    """X times a polynomial of its square where it is small."""
    near = x * _with(x * x, lambda square: _polynomial(square, series))
    return tirx.Select(tirx.op.abs(x) < _number(SMALL), near, beyond)


def _tanh(x: Expr) -> Expr:
    """A quotient of polynomials up to where it is 1, beyond which it would leave that again."""

    def ratio(x: Expr) -> Expr:
        def of_square(square: Expr) -> Expr:
            return x * _polynomial(square, _TANH[0]) / _polynomial(square, _TANH[1])

        return _with(x * x, of_square)

    return _with(_with(_within(x, TANH_IS_1), ratio), lambda y: _within(y, 1.0))


def _within(x: Expr, bound: float) -> Expr:
    """X between two bounds; NaN stays NaN."""
    low = tirx.Select(x < _number(-bound), _number(-bound), x)
    return tirx.Select(x > _number(bound), _number(bound), low)


_TANH = (
    (1.3319116e-8, 2.0583517e-5, 3.4940368e-3, 0.1337972, 1.0),
    (7.762038e-7, 3.2830963e-4, 2.5871081e-2, 0.46713036, 1.0),
)
"""tanh(x) / x by x^2 up to 9.01, the highest power first: within 2.1e-8 where it is exact."""


def _erf(x: Expr) -> Expr:
    """Abramowitz and Stegun, 7.1.26: 1 - (a1 t + ... + a5 t^5) e^-x^2, t = 1 / (1 + p x); odd."""

    def beyond(magnitude: Expr) -> Expr:
        t = _number(1.0) / (_number(1.0) + _number(0.3275911) * magnitude)
        series = _with(t, lambda t: t * _polynomial(t, _ERF))
        falling = _with(magnitude * magnitude * _number(-1.0), _exp)
        return _number(1.0) + series * falling * _number(-1.0)

    positive = _with(tirx.op.abs(x), beyond)
    signed = _with(positive, lambda y: tirx.Select(x < _number(0.0), y * _number(-1.0), y))
    scale = 2 / math.sqrt(math.pi)
    return _odd(x, tuple(scale * c for c in (1 / 216, -1 / 42, 1 / 10, -1 / 3, 1.0)), signed)


_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _power(call: Expr) -> Expr:
    """Squares, cubes and fourth powers; others as they are."""
    base, exponent = call.args
    if not isinstance(exponent, tirx.FloatImm) or float(exponent.value) not in (2.0, 3.0, 4.0):
        return call

    def power(x: Expr) -> Expr:
        square = x * x
        return {2.0: square, 3.0: square * x, 4.0: square * square}[float(exponent.value)]

    return _with(base, power)


_FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "exp": _exp, "sigmoid": _sigmoid, "tanh": _tanh, "erf": _erf,
}  # fmt: skip
