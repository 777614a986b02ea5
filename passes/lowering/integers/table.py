"""Functions of one quantised value as tables of its 256 integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.passes.lowering.integers.values import Quantisation, Quantised, QuantisedView
from nmcompile.passes.lowering.view import Expr, constant, shape_of

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


_UNARY: dict[str, Callable[[Floats], Any]] = {
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "nn.silu": lambda x: x * _sigmoid(x),
    "nn.gelu": lambda x: x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
    "tanh": np.tanh,
    "erf": _erf,
    "exp": np.exp,
    "abs": np.abs,
    "negative": np.negative,
    "sqrt": np.sqrt,
}
_BINARY: dict[str, Callable[[Floats, Floats], Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


class Function:
    """A real value of the graph as a function of the one quantised value that it depends on.

    source: that value, None if there is none. members: the variables in between.
    """

    def __init__(self, view: QuantisedView, expr: Expr) -> None:
        self._view, self._shape = view, shape_of(expr)
        self._through: list[Expr] = []  # integers on the way, rounded and read again
        self.members: list[Expr] = []
        self.source = self._common_source(expr)
        self._expr = expr

    def results(self) -> Floats:
        """The real numbers for the 256 integers of the source."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._evaluate(self._expr), (256,)).astype(np.float32)

    def _common_source(self, expr: Expr) -> Quantised | None:
        """The one quantised value: of several, the latest are looked through."""
        places = {var: place for place, var in enumerate(self._view.definitions)}
        while True:
            self.members = []
            leaves = self._leaves(expr)
            found = {leaf.var: leaf for leaf in leaves or ()}
            if len(found) < 2:
                return next(iter(found.values()), None)
            latest = max(found, key=lambda var: places.get(var, -1))
            if self._view.rounding(latest) is None or latest in self._view.taken:
                return None
            self._through.append(latest)

    def _leaves(self, expr: Expr) -> list[Quantised] | None:
        """The quantised values that a value is computed of; None where it is no such function."""
        value = constant(expr)
        if value is not None:
            return [] if value.dtype == np.float32 and value.size == 1 else None
        if shape_of(expr) != self._shape or expr not in self._view.definitions:
            return None
        quantised = self._view.quantised(expr)
        if quantised is not None:
            if quantised.var not in self._through:
                return [quantised]
            self.members += [expr, quantised.var]
            return self._leaves(self._view.source(quantised.var))
        op = self._view.op(expr)
        if op not in _UNARY and op not in _BINARY and op not in ("clip", "nn.leakyrelu"):
            return None
        self.members.append(expr)
        arguments = self._view.args(expr)
        parts = [self._leaves(a) for a in (arguments[:1] if op == "clip" else arguments)]
        return None if None in parts else [leaf for part in parts for leaf in part or ()]

    def _evaluate(self, expr: Expr) -> Floats:
        value = constant(expr)
        if value is not None:
            return np.asarray(value.reshape(1), np.float32)
        quantised = self._view.quantised(expr)
        if quantised is not None:
            real = dequantise(quantised.meaning)
            if quantised.var not in self._through:
                return real
            inner = self._evaluate(self._view.source(quantised.var))
            return real[quantise(inner, quantised.meaning)]
        op, arguments = self._view.op(expr), self._view.args(expr)
        if op == "clip":
            low, high = map(_number, arguments[1:3])
            return np.asarray(np.clip(self._evaluate(arguments[0]), low, high), np.float32)
        if op == "nn.leakyrelu":
            x, alpha = (
                self._evaluate(arguments[0]),
                np.float32(self._view.definitions[expr].attrs.alpha),
            )
            return np.where(x < 0, x * alpha, x)
        function: Callable[..., Any] = _UNARY.get(op) or _BINARY[op]
        return np.asarray(function(*map(self._evaluate, arguments)), np.float32)


def _number(limit: Any) -> float:
    return float(getattr(limit, "value", limit))


def quantise(real: Floats, meaning: Quantisation) -> Bytes:
    """Stored values of real numbers, as QuantizeLinear computes them."""
    steps = np.rint(np.broadcast_to(real, (256,)) / np.float32(meaning.scale))
    whole = np.clip(np.nan_to_num(steps), -(2.0**20), 2.0**20) + meaning.zero
    return np.asarray(whole.clip(0, 255), np.uint8)


def dequantise(meaning: Quantisation) -> Floats:
    """The real numbers of the 256 stored values."""
    stored = np.arange(256) - meaning.zero
    return stored.astype(np.float32) * np.float32(meaning.scale)
