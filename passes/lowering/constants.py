"""Views of constants, computed by numpy.

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
        computed = self._compute(call)
        return call if computed is None else relax.const(computed)

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
