"""Operators that TVM compiles to code that is wrong, or fails when it runs or is loaded.

1. Gathers and scatters, whose indices may be outside, see `bounds.py`.
2. Constants without elements, which a library cannot hold: concatenation does without them.
3. Products with a constant zero, and quotients of one, which TVM holds to be zero: of NaN they
   are NaN. What it does not know for a constant stays. Leaky relu with a slope of zero is prelu.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.corrections.bounds import LIMITS, check_indices, limit_take
from nmcompile.passes.lowering.view import constant, shape_of

Expr = Any


def make_safe(module: Any, limit: bool) -> Any:
    """The module without such operators.

    Args:
        module: changed in place.
        limit: whether to limit indices that are computed: once, when it is known which are.

    Raises:
        ImpossibleModelError: a constant index outside of its axis.
    """
    for var, func in module.functions_items():
        if isinstance(func, relax.Function):
            check_indices(func)
            module.update_func(var, _Safe(module, limit).visit_expr(func))
    return module


@mutator
class _Safe(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, limit: bool) -> None:
        super().__init__(module)
        self._limit = limit

    def visit_call_(self, call: Expr) -> Expr:
        call = self.visit_expr_post_order(call)
        name = str(getattr(call.op, "name", ""))
        if name == "relax.take":
            return limit_take(call, self._as_given(call.args[1]))  # case 1
        if name in LIMITS and self._limit:
            return LIMITS[name](call)
        if name == "relax.concat" and isinstance(call.args[0], relax.Tuple):
            return _concat(call)
        if name in ("relax.multiply", "relax.divide"):
            return self._with_zero(call)
        if name == "relax.nn.leakyrelu" and not call.attrs.alpha and shape_of(call):
            return relax.op.nn.prelu(call.args[0], relax.const(np.zeros(1, "float32")), -1)
        return call

    def _as_given(self, indices: Expr) -> Expr:
        """Indices before they were made int32, in which those of 2^32 would be 0."""
        bound = self.lookup_binding(indices) if isinstance(indices, relax.Var) else indices
        cast = str(getattr(getattr(bound, "op", None), "name", "")) == "relax.astype"
        return bound.args[0] if cast and str(bound.args[0].ty.dtype) == "int64" else indices

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


def _concat(call: Expr) -> Expr:  # case 2
    kept = [part for part in call.args[0].fields if 0 not in (shape_of(part) or ())]
    if len(kept) == len(call.args[0].fields) or not kept:
        return call
    return kept[0] if len(kept) == 1 else relax.op.concat(relax.Tuple(kept), call.attrs.axis)
