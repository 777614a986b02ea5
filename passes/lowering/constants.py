"""Views of constants, computed by numpy; matrices that are repeated for a product, once.

Importers write a reshape for every bias and a transposition for every matrix. TVM's own folding
generates and compiles a function for each, which for a ResNet-50 takes longer than everything else
that inspecting it does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.view import constant, operator_name, shape_of

RESHAPES = ("reshape", "expand_dims", "squeeze", "flatten")


def fold_views(module: Any) -> Any:
    """The module with every reshape and transposition of a constant as a constant.

    1. `reshape`, `expand_dims`, `squeeze` and `flatten` to a shape that is known;
    2. `permute_dims`;
    3. both of what another of them made.

    `broadcast_to` the shape that a tensor has goes away, and so does that of a matrix in a product,
    which repeats it by itself: torch exports a `Linear` of a transposed tensor so. So do `astype`
    the dtype that a tensor has, and `where` by truth values that are all the same.
    """
    folded = module.clone()
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            folded.update_func(name, _Folder(module).visit_expr(function))
    return folded


@mutator
class _Folder(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Any) -> Any:
        """The call, or what it computes."""
        call = super().visit_call_(call)
        name = operator_name(call)
        if name == "broadcast_to" and shape_of(call) == shape_of(call.args[0]) is not None:
            return call.args[0]
        if name == "astype" and str(call.args[0].ty.dtype) == str(call.attrs.dtype):
            return call.args[0]
        if name == "where" and (chosen := _chosen(call)) is not None:
            return chosen
        if name == "matmul" and (matrix := self._repeated(call.args[1])) is not None:
            once = relax.op.matmul(call.args[0], matrix, call.attrs.out_dtype)
            once = self.builder_.normalize(once)
            return once if shape_of(once) == shape_of(call) is not None else call
        computed = self._compute(call)
        return call if computed is None else relax.const(computed)

    def _repeated(self, value: Any) -> Any:
        """The matrix that a `broadcast_to` repeats along axes in front of it, or None."""
        source = self.lookup_binding(value) if isinstance(value, relax.Var) else None
        if not isinstance(source, relax.Call) or operator_name(source) != "broadcast_to":
            return None
        matrix, shape = source.args[0], shape_of(source)
        if shape is None or shape_of(matrix) != shape[-2:]:
            return None
        return matrix

    def _compute(self, call: Any) -> npt.NDArray[Any] | None:
        name, shape = operator_name(call), shape_of(call)
        if name not in (*RESHAPES, "permute_dims") or shape is None:
            return None
        source = call.args[0]
        if isinstance(source, relax.Var):
            source = self.lookup_binding(source)
        value = None if source is None else constant(source)
        if value is None:
            return None
        if name in RESHAPES:
            return value.reshape(shape)
        axes = call.attrs.axes
        order = None if axes is None else [int(axis) for axis in axes]
        return np.ascontiguousarray(value.transpose(order))


def _chosen(call: Any) -> Any:
    """What a `where` selects everywhere, if that has its shape; None where it does select."""
    held = constant(call.args[0])
    if held is None or held.size == 0 or held.any() != held.all():
        return None
    chosen = call.args[1 if held.all() else 2]
    return chosen if shape_of(chosen) == shape_of(call) is not None else None
