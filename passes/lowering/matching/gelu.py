"""Find GELU spelled out: x / 2 * (1 + erf(x / sqrt(2))), and with a tangent of a cubic.

It is looked for from the erf or tanh. What that is of is a polynomial of x with numbers for
coefficients, in whatever order of sums, products and powers; behind it come a sum with a number and
products with x and with numbers, in any order too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nmcompile.kernels.spec import GELU_TANH, ActivationKind
from nmcompile.passes.lowering.view import Expr, FunctionView, scalar, shape_of

Polynomial = tuple[float, ...]  # coefficients of 1, x, x^2, x^3
ARGUMENTS: dict[str, tuple[ActivationKind, Polynomial]] = {
    "erf": ("gelu", (0.0, math.sqrt(0.5), 0.0, 0.0)),
    "tanh": ("gelu_tanh", (0.0, GELU_TANH[0], 0.0, GELU_TANH[1])),
}
CLOSE = 1e-4  # relative: exports round the factors


@dataclass(frozen=True)
class FoundGelu:
    """A GELU of `x` and the variables that it replaces, in order: the last is the result."""

    kind: ActivationKind
    x: Expr
    members: tuple[Expr, ...]


def find_gelu(view: FunctionView) -> Iterator[FoundGelu]:
    """All of a function, each of whose inner values nothing else reads."""
    for var in view.definitions:
        name = view.op(var)
        if name in ARGUMENTS and str(var.ty.dtype) == "float32" and shape_of(var) is not None:
            kind, wanted = ARGUMENTS[name]
            found = _Search(view, var).around(wanted)
            if found is not None:
                yield FoundGelu(kind, *found)


class _Search:
    """Around one erf or tanh."""

    def __init__(self, view: FunctionView, core: Expr) -> None:
        self._view, self._core = view, core

    def around(self, wanted: Polynomial) -> tuple[Expr, tuple[Expr, ...]] | None:
        """X and the variables between it and the result, or None."""
        (argument,) = self._view.args(self._core)
        for x in self._inner(argument):
            members = set[Expr]()
            if _close(self._polynomial(argument, x, members), wanted):
                members.add(self._core)
                last = self._behind(x, members)
                if last is not None and self._view.closed(members, last):
                    return x, self._view.ordered(members)
        return None

    def _inner(self, argument: Expr) -> Iterator[Expr]:
        """What the argument is computed of: x is among it if there is one."""
        waiting, seen = [argument], set[Expr]()
        while waiting and len(seen) < 16:  # a cubic is spelled with fewer
            value = waiting.pop(0)
            if value in seen or scalar(value) is not None:
                continue
            seen.add(value)
            yield value
            if self._view.op(value) in ("add", "subtract", "multiply", "divide", "power"):
                waiting += self._view.args(value)

    def _polynomial(self, value: Expr, x: Expr, members: set[Expr]) -> Polynomial | None:
        """A value as a polynomial of x; the variables that it is computed of go to `members`."""
        if value.same_as(x):
            return (0.0, 1.0, 0.0, 0.0)
        number = scalar(value)
        if number is not None:
            return (number, 0.0, 0.0, 0.0)
        name = self._view.op(value)
        if name not in ("add", "subtract", "multiply", "divide", "power"):
            return None
        if shape_of(value) != shape_of(x) or str(value.ty.dtype) != "float32":
            return None
        left, right = (self._polynomial(part, x, members) for part in self._view.args(value))
        if left is None or right is None:
            return None
        members.add(value)
        if name in ("add", "subtract"):
            sign = 1.0 if name == "add" else -1.0
            return tuple(a + sign * b for a, b in zip(left, right, strict=True))
        if name == "multiply":
            return _product(left, right)
        if any(right[1:]) or not right[0]:
            return None
        if name == "divide":
            return tuple(a / right[0] for a in left)
        if right[0] not in (2.0, 3.0):
            return None
        square = _product(left, left)
        return square if right[0] == 2.0 or square is None else _product(square, left)

    def _behind(self, x: Expr, members: set[Expr]) -> Expr | None:
        """X / 2 * (1 + core), if that is what follows; the variables between become members.

        What is computed so far is factor * (shift + core), times x once that is `gated`.
        """
        last, factor, shift, gated = self._core, 1.0, 0.0, False
        while not (gated and math.isclose(factor, 0.5, rel_tol=CLOSE)):
            users = self._view.users.get(last, [])
            if len(users) != 1 or shape_of(users[0]) != shape_of(x):
                return None
            user, name = users[0], self._view.op(users[0])
            if name not in ("add", "multiply", "divide"):
                return None
            left, right = self._view.args(user)
            if name == "divide" and not left.same_as(last):
                return None
            other = right if left.same_as(last) else left
            made = set[Expr]()
            by = self._polynomial(other, x, made)
            if by is None or by[2] or by[3]:
                return None
            if not by[1]:
                if not by[0]:
                    return None
                if name == "add":
                    if gated:
                        return None
                    shift += by[0] / factor
                else:
                    factor *= by[0] if name == "multiply" else 1.0 / by[0]
            elif name == "multiply" and not gated and not by[0]:
                factor, gated = factor * by[1], True
            else:
                return None
            members |= {*made, user}
            last = user
        return last if math.isclose(shift, 1.0, rel_tol=CLOSE) else None


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    """Of two polynomials; None where it has higher powers than x^3."""
    product = np.convolve(left, right)
    return None if product[4:].any() else tuple(product[:4].tolist())


def _close(found: Polynomial | None, wanted: Polynomial) -> bool:
    if found is None:
        return False
    return all(math.isclose(a, b, rel_tol=CLOSE) for a, b in zip(found, wanted, strict=True))
