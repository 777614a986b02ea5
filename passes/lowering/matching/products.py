"""Find products of two activations: what no layer and no attention has taken."""

from __future__ import annotations

import math

from nmcompile.kernels.spec import Product, Strides
from nmcompile.passes.lowering.matching.found import Found, place_among
from nmcompile.passes.lowering.matching.strided import Shape, Strided, merged_lead
from nmcompile.passes.lowering.matching.traced import trace
from nmcompile.passes.lowering.view import Expr, FunctionView, shape_of


class ProductMatcher:
    """Finds them; operands are read through what only moves their elements."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def match(self, var: Expr) -> Found | None:
        """The product that a variable is, or None."""
        if self._view.op(var) != "matmul" or str(var.ty.dtype) != "float32":
            return None
        shape, sides = shape_of(var), self._view.args(var)[:2]
        shapes = [shape_of(side) for side in sides]
        if shape is None or any(side is None or len(side) < 2 for side in shapes):
            return None
        if any(str(side.ty.dtype) != "float32" for side in sides) or 0 in shape:
            return None
        lead, (rows, columns) = shape[:-2], shape[-2:]
        depth = (shapes[0] or ())[-1]
        if not depth:
            return None
        read = [
            self._read(side, (*lead, *matrix))
            for side, matrix in zip(sides, ((rows, depth), (depth, columns)), strict=True)
        ]
        if any(one is None for one in read):
            return None
        bases, views = zip(*(one for one in read if one is not None), strict=True)
        lead = merged_lead(lead, [*views, Strided.whole(shape)])
        operands: list[Expr] = []
        places = []
        for base, view in zip(bases, views, strict=True):
            held = view.reshaped((*lead, *view.shape[-2:]))
            if held is None or not held.is_simple:
                return None
            *before, token, feature = held.strides
            place = place_among(operands, base)
            places.append(Strides(place, held.offset, tuple(before), token, feature))
        held_by = tuple(shape_of(operand) or () for operand in operands)
        a, b = places
        spec = Product(lead, rows, columns, depth, held_by, a, b, shape)
        return Found(spec, tuple(operands), (var,))

    def _read(self, side: Expr, wanted: Shape) -> tuple[Expr, Strided] | None:
        """The earliest tensor of which an operand is a view, and that view."""
        for traced in trace(self._view, side, scaled=False):
            if str(traced.base.ty.dtype) != "float32" or not math.prod(shape_of(traced.base) or ()):
                continue
            held = traced.as_view()
            held = None if held is None else held.broadcast(wanted)
            if held is not None and held.is_simple:
                return traced.base, held
        return None
