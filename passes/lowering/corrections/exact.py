"""Expressions over floats and truth values, in forms that TVM and LLVM compute as they stand.

TVM's simplifier takes floats for the real numbers, which know neither rounding nor NaN. It cancels
(x + y) - y, by which models round; it holds x == x, by which they find NaN, to be true, and the
negation of a < b to be b <= a.

1. a - b is a + b * -1, the same number.
2. a == b of floats is a <= b and b <= a, and a != b the negation of that: LLVM is given one that
   is false where an operand is NaN. Of truth values they are exclusive ors: LLVM would be given
   an instruction of floats.
3. A negation is an exclusive or with true.
4. a or b is a bitwise one.
5. A product of truth values, which LLVM has none of, is a and b.

LLVM makes one instruction of each.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

Expr = Any


def keep_exact(func: Any) -> Any:
    """A TIR function that computes the same, with these forms in place of the others."""
    cases = (
        ((tirx.Sub,), _difference),
        ((tirx.EQ, tirx.NE), _equality),
        ((tirx.Not,), _negation),
        ((tirx.Or,), _disjunction),
        ((tirx.Mul,), _product),
    )
    body = func.body
    for kinds, change in cases:
        body = tvm_ffi.structural_map(body, (kinds, change))
    return func.with_body(body)


def _dtype(value: Expr) -> str:
    return str(value.ty.dtype)


def _is_float(value: Expr) -> bool:
    return _dtype(value).startswith(("float", "bfloat"))


def _difference(value: Expr) -> Expr:  # case 1
    if not _is_float(value):
        return value
    if isinstance(value.b, tirx.FloatImm):
        return tirx.Add(value.a, tirx.FloatImm(_dtype(value), -float(value.b.value)))
    return tirx.Add(value.a, tirx.Mul(value.b, tirx.FloatImm(_dtype(value), -1.0)))


def _equality(value: Expr) -> Expr:  # case 2
    a, b, equal = value.a, value.b, isinstance(value, tirx.EQ)
    if _is_float(a):
        both = tirx.And(tirx.LE(a, b), tirx.LE(b, a))
        return both if equal else _negated(both)
    if _dtype(a) == "bool":
        differ = tirx.bitwise_xor(a, b)
        return _negated(differ) if equal else differ
    return value


def _negation(value: Expr) -> Expr:  # case 3
    return _negated(value.a) if _is_of_data(value.a) else value


def _disjunction(value: Expr) -> Expr:  # case 4
    return tirx.bitwise_or(value.a, value.b) if _is_of_data(value) else value


def _product(value: Expr) -> Expr:  # case 5
    return tirx.And(value.a, value.b) if _dtype(value) == "bool" else value


def _negated(value: Expr) -> Expr:
    return tirx.bitwise_xor(value, tirx.IntImm("bool", 1))


def _is_of_data(value: Expr) -> bool:
    """Whether a truth value depends on data, and not on indices alone, which TVM has to prove."""
    loads: list[Expr] = []
    tvm_ffi.structural_walk(value, (TensorLoad, loads.append))
    return bool(loads)
