"""Follows the images of a batch through a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from nmcompile.passes.lowering.naming import content_of
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of


@dataclass(frozen=True)
class Rows:
    """Where the images of a value lie: `each` consecutive rows per image along `axis`."""

    axis: int
    each: int = 1


class Together(Exception):
    """An operator takes images together, or nobody knows."""


Rule = Callable[["Reader", Expr], Rows]
"""Where the images of what an operator makes lie, of the variable that it is bound to."""


class Reader:
    """Follows the images through one function."""

    def __init__(
        self, function: Any, batch: int, inputs: Sequence[bool], rules: Mapping[str, Rule]
    ) -> None:
        self._rules = rules
        self.batch, self.view, self._function = batch, FunctionView(function), function
        self.text: list[str] = []
        self._rows: dict[Expr, Rows | None] = {}
        self._names: dict[Expr, str] = {}
        for number, (var, batched) in enumerate(zip(function.params, inputs, strict=True)):
            self._rows[var] = Rows(0) if batched else None
            self._names[var] = f"input{number}"

    def check(self) -> None:
        """Fill `text` with what is computed of an image, an operator a line.

        Raises:
            Together: images are not computed by themselves.
        """
        for number, (var, value) in enumerate(self.view.definitions.items()):
            self._names[var] = f"%{number}"
            self._rows[var] = self._follow(var, value)
            self.text.append(self._spell(var, value))
        body = self._function.body.body
        bound = self.view.definitions.get(body, body)
        outputs = list(bound.fields) if isinstance(bound, relax.Tuple) else [body]
        for output in outputs:
            shape = shape_of(output)
            if self.rows(output) != Rows(0) or not shape or shape[0] != self.batch:
                raise Together("an output has no row for each image in front")
        self.text.append(" ".join(map(self._name, outputs)))

    def rows(self, expr: Expr) -> Rows | None:
        """Where the images of an expression lie; None where it is of all of them.

        Raises:
            Together: nobody knows.
        """
        if expr in self._rows:
            return self._rows[expr]
        if isinstance(expr, relax.TupleGetItem):
            return self.rows(expr.tuple_value)
        if constant(expr) is None:
            raise Together(
                f"{type(expr).__name__}, of which nobody knows whether it is of an image"
            )
        return None

    def _follow(self, var: Expr, value: Expr) -> Rows | None:
        if isinstance(value, relax.Tuple):
            found = {self.rows(field) for field in value.fields}
            if len(found) > 1:
                raise Together("a tuple of values whose images lie differently")
            return found.pop() if found else None
        if isinstance(value, relax.TupleGetItem):
            return self.rows(value.tuple_value)
        if not isinstance(value, relax.Call):
            return self.rows(value)
        used = [self.rows(operand) for operand in self.view.operands(var)]
        if not any(used):
            return None
        op = self.view.op(var)
        rule = self._rules.get(op)
        if rule is None:
            raise Together(f"{op or value.op}, which is not known to take images one by one")
        try:
            return rule(self, var)
        except Together as error:
            raise Together(f"{op}{error}") from None

    def need(self, holds: bool) -> None:
        """Go on only if this holds.

        Raises:
            Together: it does not.
        """
        if not holds:
            raise Together(" takes images together")

    def shape(self, expr: Expr) -> tuple[int, ...]:
        """Of a tensor.

        Raises:
            Together: it has none that is known.
        """
        shape = shape_of(expr)
        self.need(shape is not None)
        assert shape is not None
        return shape

    def repeats(self, expr: Expr, axis: int, each: int) -> bool:
        """Whether a constant has the same rows for every image."""
        array = constant(expr)
        if array is None or array.shape[axis] != self.batch * each:
            return False
        split = np.moveaxis(array, axis, 0).reshape(self.batch, -1)
        return bool((split == split[:1]).all())

    def _spell(self, var: Expr, value: Expr) -> str:
        """What is computed, but for how many images."""
        if not isinstance(value, relax.Call):
            return self._name(value)
        attrs = "" if value.attrs is None else tvm.ir.save_json(value.attrs)
        arguments = " ".join(map(self._name, self.view.args(var)))
        return f"{self.view.op(var)} {attrs} {arguments} {self._spell_shape(var)}"

    def _spell_shape(self, var: Expr) -> str:
        shape, rows = shape_of(var), self.rows(var)
        if shape is None or rows is None:
            return str(shape)
        return f"{shape[: rows.axis]} {rows.each} {shape[rows.axis + 1 :]}"

    def _name(self, expr: Expr) -> str:
        if expr in self._names:
            return self._names[expr]
        array = constant(expr)
        if array is not None:
            if array.ndim and array.size and (array == array[:1]).all():
                array = array[:1]  # one row for each image, or one for all of them
            shape, dtype, digest = content_of(array)
            return f"{dtype}{shape}{digest.hex()}"
        if isinstance(expr, relax.Tuple):
            return f"({' '.join(map(self._name, expr.fields))})"
        if isinstance(expr, relax.TupleGetItem):
            return f"{self._name(expr.tuple_value)}.{expr.index}"
        if isinstance(expr, relax.ShapeExpr):
            return "shape"  # that of the result
        return str(expr)
