"""Operators that only move quantised values: they work on integers as they do on real numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import relax

from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.integers.values import Quantisation, Quantised, QuantisedView
from nmcompile.passes.lowering.view import Expr, operator_name, shape_of

MOVES = (*RESHAPES, "permute_dims", "strided_slice", "nn.max_pool2d")


@dataclass(frozen=True, eq=False)
class Moved:
    """quantize(operator(dequantize(var))) with one meaning: the operator of the integers."""

    var: Expr
    call: Any
    shape: tuple[int, ...]

    @property
    def reshapes(self) -> bool:
        """Whether the elements lie as before in the model."""
        return operator_name(self.call) in RESHAPES

    def keeps_order(self, shape: tuple[int, ...]) -> bool:
        """Whether bytes lie as before in a result of this shape.

        They do in other than four dimensions, and of one pixel.
        """
        planes = [math.prod(s[2:]) for s in (shape, self.shape) if len(s) == 4]
        return self.reshapes and all(pixels == 1 for pixels in planes)

    def permutes(self, axes: tuple[int, ...]) -> bool:
        """Whether it puts axes in this order."""
        if operator_name(self.call) != "permute_dims" or len(axes) != len(self.shape):
            return False
        given = self.call.attrs.axes
        return given is not None and tuple(int(axis) % len(axes) for axis in given) == axes


@dataclass(frozen=True, eq=False)
class Joined:
    """quantize(concat(dequantize(part), ...)); `axis` is the model's."""

    parts: tuple[Quantised, ...]
    axis: int
    target: Quantisation


def find_moved(view: QuantisedView, var: Expr) -> Moved | None:
    """What a rounded value is a move of, if it is one."""
    target = view.rounding(var)
    if target is None:
        return None
    moved = view.source(var)
    if view.op(moved) not in MOVES:
        return None
    call = view.definitions[moved]
    source = view.quantised(call.args[0])
    if source is None or source.meaning != target:
        return None
    shape = shape_of(source.var)
    return None if shape is None else Moved(source.var, call, shape)


def find_joined(view: QuantisedView, var: Expr) -> Joined | None:
    """The parts of a rounded concatenation, if it is one."""
    target = view.rounding(var)
    if target is None:
        return None
    joined = view.source(var)
    if view.op(joined) != "concat":
        return None
    call = view.definitions[joined]
    shape = shape_of(joined)
    if not isinstance(call.args[0], relax.Tuple) or shape is None:
        return None
    parts = [view.quantised(part) for part in call.args[0].fields]
    if any(part is None for part in parts):
        return None
    axis = int(call.attrs.axis) % len(shape)
    return Joined(tuple(part for part in parts if part is not None), axis, target)
