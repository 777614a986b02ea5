"""Views of constants and arithmetic on whole ones, computed by numpy; repeated matrices, once.

Importers write a reshape for every bias, a transposition for every matrix, and for every index six
operators that count it from the end where it is negative. TVM's own folding generates and compiles
a function for each, which for a ResNet-50 takes longer than everything else that inspecting it
does, and half a minute for 150 indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.view import constant, operator_name, shape_of

RESHAPES = ("reshape", "expand_dims", "squeeze", "flatten")
ON_INTEGERS: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "where": np.where,
}
"""Operators that numpy and TVM compute alike of whole numbers and truth values."""


def fold_views(module: Any) -> Any:
    """The module with every reshape and transposition of a constant as a constant.

    1. `reshape`, `expand_dims`, `squeeze` and `flatten` to a shape that is known;
    2. `permute_dims`;
    3. arithmetic and comparisons of whole numbers and truth values;
    4. shapes that are known as tensors, and an extent of such;
    5. all of what another of them made.

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
        if name == "where" and (chosen := self._chosen(call)) is not None:
            return chosen
        if name == "matmul" and (matrix := self._repeated(call.args[1])) is not None:
            once = relax.op.matmul(call.args[0], matrix, call.attrs.out_dtype)
            once = self.builder_.normalize(once)
            return once if shape_of(once) == shape_of(call) is not None else call
        computed = self._compute(call)
        return call if computed is None else relax.const(computed, str(computed.dtype))

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
        if shape is not None and name in ON_INTEGERS:
            return self._on_integers(ON_INTEGERS[name], call, shape)
        if name == "shape_to_tensor":
            return self._shape(call.args[0])
        if name == "take" and shape is not None:
            return self._taken(call)
        if name not in (*RESHAPES, "permute_dims") or shape is None:
            return None
        value = self._known(call.args[0])
        if value is None:
            return None
        if name in RESHAPES:
            return value.reshape(shape)
        axes = call.attrs.axes
        order = None if axes is None else [int(axis) for axis in axes]
        return np.ascontiguousarray(value.transpose(order))

    def _known(self, source: Any) -> npt.NDArray[Any] | None:
        """The value of a constant, or of a variable that is bound to one."""
        if isinstance(source, relax.Var):
            source = self.lookup_binding(source)
        return None if source is None else constant(source)

    def _on_integers(
        self, compute: Callable[..., Any], call: Any, shape: tuple[int, ...]
    ) -> npt.NDArray[Any] | None:
        if not all(isinstance(argument.ty, relax.TensorType) for argument in call.args):
            return None  # a function of TVM's of that name
        dtypes = [str(each.ty.dtype) for each in (call, *call.args)]
        if not all(dtype == "bool" or dtype.startswith(("int", "uint")) for dtype in dtypes):
            return None
        values = [self._known(argument) for argument in call.args]
        if any(value is None for value in values):
            return None
        found = np.asarray(compute(*values), dtypes[0])
        return found if found.shape == shape else None

    def _shape(self, source: Any) -> npt.NDArray[Any] | None:
        """A shape as a tensor, where all of it is known."""
        try:
            return np.array([int(extent) for extent in source.ty.values], np.int64)
        except (AttributeError, TypeError):
            return None

    def _taken(self, call: Any) -> npt.NDArray[Any] | None:
        """Whole numbers of a constant vector, at constant places inside of it."""
        values, places = (self._known(argument) for argument in call.args)
        if values is None or places is None or values.ndim != 1 or not _is_whole(values):
            return None
        if places.size and not 0 <= places.min() <= places.max() < values.size:
            return None
        return np.asarray(values[places])

    def _chosen(self, call: Any) -> Any:
        """What a `where` selects everywhere, if it has its shape; None where it does select."""
        held = self._known(call.args[0])
        if held is None or held.size == 0 or held.any() != held.all():
            return None
        chosen = call.args[1 if held.all() else 2]
        return chosen if shape_of(chosen) == shape_of(call) is not None else None


def _is_whole(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind in "iub"
