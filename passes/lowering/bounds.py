"""Operators that TVM compiles to code that is wrong, or fails when it runs or is loaded.

1. A gather reads whatever memory an index points at. Constant indices are looked at here; those
   that are computed give NaN outside of the axis, and the nearest element of integers.
2. Constants without elements, which a library cannot hold: concatenation does without them.
3. Negation: TVM makes of not (a < b) that b <= a, which NaN is not. An exclusive or stays one.
4. Equality of truth values, for which LLVM would be given an instruction of floats.
"""

from __future__ import annotations

from typing import Any

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
        if name == "relax.logical_not" and _is_bool(call.args[0]):  # case 3
            return _negated(call.args[0])
        if name == "relax.equal" and all(map(_is_bool, call.args)):  # case 4
            return _negated(self.builder_.normalize(relax.op.logical_xor(*call.args)))
        if name == "relax.not_equal" and all(map(_is_bool, call.args)):
            return relax.op.logical_xor(*call.args)
        return call


def _is_bool(value: Expr) -> bool:
    return str(value.ty.dtype) == "bool"


def _negated(value: Expr) -> Expr:
    return relax.op.logical_xor(value, relax.const(True, "bool"))


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
