"""Functions of one quantised value as tables of its 256 integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.spec import GELU_TANH
from nmcompile.passes.lowering.integers.values import Quantised, QuantisedView
from nmcompile.passes.lowering.view import Expr, constant, shape_of

Floats = npt.NDArray[np.float32]

_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


_UNARY: dict[str, Callable[[Floats], Any]] = {
    "nn.relu": lambda x: np.maximum(x, 0),
    "nn.relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "nn.silu": lambda x: x * _sigmoid(x),
    "nn.gelu": lambda x: x * np.float32(0.5) * (1 + _erf(x * np.float32(math.sqrt(0.5)))),
    "nn.gelu_tanh": lambda x: (
        x * np.float32(0.5) * (1 + np.tanh(GELU_TANH[0] * x + GELU_TANH[1] * x**3))
    ),
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


_LIMITED = ("clip", "nn.leakyrelu")
"""Functions of a tensor and numbers."""


class Function:
    """A real value of the graph as a function of the one quantised value that it depends on.

    source: that value, None if there is none. members: the variables in between.
    """

    def __init__(self, view: QuantisedView, expr: Expr) -> None:
        self._view, self._expr, self._shape = view, expr, shape_of(expr)
        self._through: set[Expr] = set()  # integers on the way, rounded and read again
        self.members: dict[Expr, None] = {}  # in order, each once
        self._known: dict[Expr, Floats] = {}
        self.source = self._common_source()

    def results(self) -> Floats:
        """The real numbers for the 256 integers of the source."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._evaluate(self._expr), (256,)).astype(np.float32)

    def _common_source(self) -> Quantised | None:
        """The one quantised value: of several, the latest are looked through."""
        while True:
            self.members.clear()
            found: dict[Expr, Quantised] = {}
            if not self._find_sources(self._expr, found):
                return None
            if len(found) < 2:
                return next(iter(found.values()), None)
            latest = max(found, key=lambda var: self._view.places.get(var, -1))
            if self._view.rounding(latest) is None or latest in self._view.taken:
                return None
            self._through.add(latest)

    def _find_sources(self, expr: Expr, found: dict[Expr, Quantised]) -> bool:
        """Collect the quantised values that a value is computed of; whether it is a function."""
        value = constant(expr)
        if value is not None:
            return value.dtype == np.float32 and value.size == 1
        if expr in self.members:
            return True
        if shape_of(expr) != self._shape or expr not in self._view.definitions:
            return False
        quantised = self._view.quantised(expr)
        if quantised is not None:
            if quantised.var not in self._through:
                found[quantised.var] = quantised
                return True
            self.members |= {expr: None, quantised.var: None}
            return self._find_sources(self._view.source(quantised.var), found)
        op = self._view.op(expr)
        if op not in _UNARY and op not in _BINARY and op not in _LIMITED:
            return False
        self.members[expr] = None
        return all(self._find_sources(argument, found) for argument in self._arguments(expr, op))

    def _arguments(self, expr: Expr, op: str) -> list[Expr]:
        """The tensors that an operator reads."""
        arguments = self._view.args(expr)
        return arguments[:1] if op in _LIMITED else arguments

    def _evaluate(self, expr: Expr) -> Floats:
        if expr not in self._known:
            self._known[expr] = np.asarray(self._compute(expr), np.float32)
        return self._known[expr]

    def _compute(self, expr: Expr) -> Any:
        value = constant(expr)
        if value is not None:
            return value.reshape(1)
        quantised = self._view.quantised(expr)
        if quantised is not None:
            real = quantised.meaning.numbers
            if quantised.var not in self._through:
                return real
            inner = self._evaluate(self._view.source(quantised.var))
            return real[quantised.meaning.stored(np.broadcast_to(inner, (256,)))]
        op = self._view.op(expr)
        values = [self._evaluate(argument) for argument in self._arguments(expr, op)]
        if op == "clip":
            low, high = map(_number, self._view.args(expr)[1:3])
            return np.clip(values[0], low, high)
        if op == "nn.leakyrelu":
            slope = np.float32(self._view.definitions[expr].attrs.alpha)
            return np.where(values[0] < 0, values[0] * slope, values[0])
        function: Callable[..., Any] = _UNARY.get(op) or _BINARY[op]
        return function(*values)


def _number(limit: Any) -> float:
    return float(getattr(limit, "value", limit))
