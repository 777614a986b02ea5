"""Find norms, softmax and its logarithm, and positions of maxima along an axis not the last."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from tvm import relax

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.spec import LayerNorm, Positions, Softmax
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.matching.group_norms import OPERATORS, group_norm, with_channels
from nmcompile.passes.lowering.matching.norms import find_norms
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of


class RowwiseMatcher:
    """Finds them where they begin."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def match(self, var: Expr) -> Found | None:
        """The operator that a variable begins, or None."""
        name = self._view.op(var)
        if name in ("nn.softmax", "nn.log_softmax"):
            return self._softmax(var, log=name == "nn.log_softmax")
        if name == "nn.layer_norm":
            return self._layer_norm(var)
        if name in ("argmax", "argmin"):
            return self._positions(var, largest=name == "argmax")
        if name in OPERATORS:
            return group_norm(self._view, var)
        found = self._norms.get(var)
        return None if found is None or self._view.taken.intersection(found.members) else found

    @cached_property
    def _norms(self) -> dict[Expr, Found]:
        """Those that are spelled out, by their first variables."""
        found = [with_channels(self._view, norm) for norm in find_norms(self._view)]
        return {norm.members[0]: norm for norm in found}

    def _softmax(self, var: Expr, *, log: bool) -> Found | None:
        (x,), shape = self._view.args(var), shape_of(var)
        if not shape:
            return None
        axis = int(self._view.definitions[var].attrs.axis) % len(shape)
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        return Found(Softmax(shape, outer, shape[axis], inner, log), (x,), (var,))

    def _positions(self, var: Expr, *, largest: bool) -> Found | None:
        (x,), axis = self._view.args(var), self._view.definitions[var].attrs.axis
        shape, out = shape_of(x), shape_of(var)
        if not shape or out is None or axis is None or str(x.ty.dtype) != "float32":
            return None
        along = int(axis) % len(shape)
        outer, inner = math.prod(shape[:along]), math.prod(shape[along + 1 :])
        if inner < LANES or str(var.ty.dtype) != "int64":
            return None
        return Found(Positions(shape, out, outer, shape[along], inner, largest), (x,), (var,))

    def _layer_norm(self, var: Expr) -> Found | None:
        x, scale, shift = self._view.args(var)
        shape, attrs = shape_of(var), self._view.definitions[var].attrs
        if not shape:
            return None
        axes = sorted(int(axis) % len(shape) for axis in attrs.axes)
        if axes != list(range(len(shape) - len(axes), len(shape))):
            return None
        features = math.prod(shape[axis] for axis in axes)
        given = [(bool(attrs.scale), scale), (bool(attrs.center), shift)]
        rows = [_flat(value, features) if used else None for used, value in given]
        if any(used and row is None for (used, _), row in zip(given, rows, strict=True)):
            return None
        spec = LayerNorm(
            shape, features, float(attrs.epsilon), rows[0] is not None, rows[1] is not None
        )
        return Found(spec, (x, *(row for row in rows if row is not None)), (var,))


def _flat(value: Expr, features: int) -> Expr | None:
    """Features in one axis; None where there are others."""
    if shape_of(value) == (features,):
        return value
    held = constant(value)
    if held is None or held.size != features:
        return None
    return relax.const(np.ascontiguousarray(held.reshape(-1), np.float32))
