"""Find layer norms and RMS norms that are spelled out.

They are looked for from the square root in

    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + shift

of rows along the last axes, as ONNX exports before opset 17 have it; without the means of x it is
an RMS norm (Zhang and Sennrich, arXiv 1910.07467). The square may be a power or a product, the
root's inverse a factor, the variance an operator, and the scale may come before the division.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from nmcompile.kernels.spec import LayerNorm
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, scalar, shape_of


def find_norms(view: FunctionView) -> Iterator[Found]:
    """All of a function, each of whose inner values nothing else reads."""
    for var in view.definitions:
        if view.op(var) in ("sqrt", "rsqrt") and str(var.ty.dtype) == "float32":
            found = _Search(view).around(var)
            if found is not None:
                yield found


@dataclass
class _Search:
    """Around one square root.

    x: what is normalised, once it is known. axes: how many of its last axes are a row.
    """

    view: FunctionView
    x: Expr = None
    axes: int = 0
    centred: bool = False
    members: set[Expr] = field(default_factory=set)

    def around(self, root: Expr) -> Found | None:
        """The norm, or None."""
        epsilon = self._inside(self.view.args(root)[0])
        if epsilon is None or self.x is None:
            return None
        self.members.add(root)
        scale, last = self._divided(root)
        if last is None:
            return None
        shift = None
        while (user := self.view.only_user(last)) is not None:
            name, row = self.view.op(user), self._row(user, last)
            if row is None or shape_of(user) != shape_of(self.x):
                break
            if name == "multiply" and scale is None:
                scale = row
            elif name == "add":
                shift = row
            else:
                break
            self.members.add(user)
            last = user
            if shift is not None:
                break
        rows = [row for row in (scale, shift) if row is not None]
        if not self.view.closed(self.members, last) or not self.members.isdisjoint(rows):
            return None
        shape = shape_of(self.x) or ()
        features = math.prod(shape[-self.axes :])
        spec = LayerNorm(
            shape, features, epsilon, scale is not None, shift is not None, self.centred
        )
        return Found(spec, (self.x, *rows), self.view.ordered(self.members))

    def _inside(self, value: Expr) -> float | None:
        """Epsilon, where a value is the variance or the mean square of x plus epsilon."""
        if self.view.op(value) != "add":
            return None
        left, right = self.view.args(value)
        inner, epsilon = (left, scalar(right)) if scalar(left) is None else (right, scalar(left))
        if epsilon is None or not epsilon >= 0:
            return None
        self.members |= {value, inner}
        if self.view.op(inner) == "variance" and self._is_of_rows(inner):
            self.x, self.centred = self.view.args(inner)[0], True
            return epsilon
        if self.view.op(inner) != "mean" or not self._is_of_rows(inner):
            return None
        square = self.view.args(inner)[0]
        base = self._squared(square)
        if base is None:
            return None
        self.members.add(square)
        centre = self._centre(base)
        self.x, self.centred = (base, False) if centre is None else (centre, True)
        return epsilon

    def _is_of_rows(self, var: Expr) -> bool:
        """Whether a mean or variance is of the last axes, which it keeps with an extent of 1."""
        shape, attrs = shape_of(self.view.args(var)[0]), self.view.definitions[var].attrs
        if not shape or not attrs.keepdims or not attrs.axis:
            return False
        axes = sorted(int(axis) % len(shape) for axis in attrs.axis)
        self.axes = self.axes or len(axes)
        return axes == list(range(len(shape) - self.axes, len(shape)))

    def _squared(self, value: Expr) -> Expr | None:
        """The base of a square."""
        name = self.view.op(value)
        if name == "square":
            return self.view.args(value)[0]
        if name not in ("power", "multiply"):
            return None
        left, right = self.view.args(value)
        if name == "power":
            return left if scalar(right) == 2.0 and shape_of(left) == shape_of(value) else None
        return left if left.same_as(right) else None

    def _centre(self, value: Expr) -> Expr | None:
        """X of x - mean(x), whose variables become members."""
        if self.view.op(value) != "subtract":
            return None
        x, mean = self.view.args(value)
        if self.view.op(mean) != "mean" or not self.view.args(mean)[0].same_as(x):
            return None
        if not self._is_of_rows(mean):
            return None
        self.members |= {value, mean}
        return x

    def _divided(self, root: Expr) -> tuple[Expr | None, Expr | None]:
        """The scale in front of the division, if it is there, and the quotient; None for others."""
        inverse, by = self.view.op(root) == "rsqrt", root
        user = self.view.only_user(root)
        if user is None:
            return None, None
        if not inverse and self.view.op(user) == "divide" and scalar(self.view.args(user)[0]) == 1:
            self.members.add(user)
            inverse, by, user = True, user, self.view.only_user(user)
            if user is not None and 1.0 in map(scalar, self.view.args(user)):
                # torch has 1 / x as its reciprocal times 1.
                if self.view.op(user) != "multiply":
                    return None, None
                self.members.add(user)
                by, user = user, self.view.only_user(user)
        if user is None or self.view.op(user) != ("multiply" if inverse else "divide"):
            return None, None
        left, right = self.view.args(user)
        if not inverse and not right.same_as(by):
            return None, None
        value = right if inverse and left.same_as(by) else left
        if shape_of(user) != shape_of(self.x):
            return None, None
        self.members.add(user)
        if self._is_numerator(value):
            return None, user
        if self.view.op(value) != "multiply":
            return None, None
        for inner in self.view.args(value):
            scale = self._row(value, inner)
            if scale is not None and self._is_numerator(inner):
                self.members.add(value)
                return scale, user
        return None, None

    def _is_numerator(self, value: Expr) -> bool:
        if not self.centred:
            return bool(value.same_as(self.x))
        x = self._centre(value)
        return x is not None and bool(x.same_as(self.x))

    def _row(self, user: Expr, value: Expr) -> Expr | None:
        """The other operand of a sum or product, where it is one number for each of a row."""
        if self.view.op(user) not in ("add", "multiply"):
            return None
        left, right = self.view.args(user)
        other = right if left.same_as(value) else left
        shape, row = shape_of(other), (shape_of(self.x) or ())[-self.axes :]
        if str(other.ty.dtype) != "float32" or shape is None:
            return None
        if shape == row and len(row) == 1:
            return other
        held = constant(other)
        if held is None or len(shape) < len(row):
            return None
        if shape[len(shape) - len(row) :] != row or any(e != 1 for e in shape[: -len(row)]):
            return None
        return relax.const(np.ascontiguousarray(held.reshape(-1)))
