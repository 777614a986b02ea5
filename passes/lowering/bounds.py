"""Operators that TVM compiles to code that is wrong, or fails when it runs or is loaded.

1. A gather reads whatever memory an index points at. Constant indices are looked at here; those
   that are computed give NaN outside of the axis, and the nearest element of integers.
2. Constants without elements, which a library cannot hold: concatenation does without them.
3. Products with a constant zero, and quotients of one, which TVM holds to be zero: of NaN they
   are NaN. What it does not know for a constant stays. Leaky relu with a slope of zero is prelu.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.passes.lowering.view import constant, shape_of

Expr = Any


def make_safe(module: Any) -> Any:
    """The module without such operators.

    Raises:
        UnsupportedOperatorError: a constant index outside of its axis.
    """
    for var, func in module.functions_items():
        if isinstance(func, relax.Function):
            module.update_func(var, _Safe(module).visit_expr(func))
    return module


@mutator
class _Safe(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any) -> None:
        super().__init__(module)

    def visit_call_(self, call: Expr) -> Expr:
        call = self.visit_expr_post_order(call)
        name = str(getattr(call.op, "name", ""))
        if name == "relax.take":
            return _take(call)
        if name == "relax.concat" and isinstance(call.args[0], relax.Tuple):
            return _concat(call)
        if name in ("relax.multiply", "relax.divide"):
            return self._with_zero(call)
        if name == "relax.nn.leakyrelu" and not call.attrs.alpha and shape_of(call):
            return relax.op.nn.prelu(call.args[0], relax.const(np.zeros(1, "float32")), -1)
        return call

    def _with_zero(self, call: Expr) -> Expr:  # case 3
        zeros = [_is_zero(argument) for argument in call.args]
        if not any(zeros[: 1 if str(call.op.name) == "relax.divide" else 2]):
            return call
        dtype = str(call.ty.dtype)
        hidden = relax.const(np.zeros(1, dtype))
        result = relax.Call(
            call.op, [hidden if z else a for z, a in zip(zeros, call.args, strict=True)]
        )
        if shape_of(call):
            return result
        return relax.op.reshape(self.builder_.normalize(result), ())


def _is_zero(value: Expr) -> bool:
    found = constant(value)
    return found is not None and not found.shape and found.dtype.kind == "f" and not found


def _take(call: Expr) -> Expr:  # case 1
    data, indices = call.args
    shape, axis = shape_of(data), call.attrs.axis
    if str(call.attrs.mode) not in ("fast", "nan") or shape is None:
        return call
    extent = shape[int(axis)] if axis is not None else shape[0]
    known = constant(indices)
    if known is not None and known.size and not (-extent <= known.min() <= known.max() < extent):
        bad = next(i for i in known.reshape(-1) if not -extent <= i < extent)
        raise UnsupportedOperatorError(
            f"a gather (Gather, index_select, embedding) along axis {axis} of shape {shape}: "
            f"expected indices from {-extent} to {extent - 1}, found {bad}; correct the model"
        )
    mode = "nan" if known is None and str(data.ty.dtype).startswith("float") else "clip"
    return relax.op.take(data, indices, axis, mode)


def _concat(call: Expr) -> Expr:  # case 2
    kept = [part for part in call.args[0].fields if 0 not in (shape_of(part) or ())]
    if len(kept) == len(call.args[0].fields) or not kept:
        return call
    return kept[0] if len(kept) == 1 else relax.op.concat(relax.Tuple(kept), call.attrs.axis)
