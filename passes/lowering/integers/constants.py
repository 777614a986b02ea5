"""Integer weights through a simplification that would compute their real numbers.

A weight stands as dequantize(integers, scale, zero point), which folding would turn into float32.
So it waits as an argument of the function while the rest is simplified; views of it are computed on
the integers. Behind everything that has no kernel for integers it becomes a float32 constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.view import Expr, constant, operator_name, shape_of

PRODUCTS = ("nn.conv2d", "matmul")
"""Operators whose second argument may be a weight of integers."""


@dataclass(frozen=True, eq=False)
class QuantisedConstant:
    """(values - zero) * scale; `scale` and `zero` broadcast and have as many dimensions."""

    values: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[Any]

    @classmethod
    def of(cls, call: Expr, values: npt.NDArray[Any]) -> QuantisedConstant | None:
        """What a `dequantize` of constants stands for; None where its scale is computed."""
        scale, zero = constant(call.args[1]), constant(call.args[2])
        if scale is None or zero is None:
            return None
        axis = int(call.attrs.axis) % max(values.ndim, 1)

        def along(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            shape = [1] * values.ndim
            if array.size > 1:
                shape[axis] = array.size
            return array.reshape(shape)

        return cls(values, along(scale), along(zero))

    def floats(self) -> npt.NDArray[np.float32]:
        """The real numbers, as DequantizeLinear computes them."""
        whole = self.values.astype(np.int64) - self.zero.astype(np.int64)
        real: npt.NDArray[np.float32] = whole.astype(np.float32) * self.scale
        return real

    def transposed(self, order: list[int] | None) -> QuantisedConstant:
        """With the dimensions in another order."""
        return QuantisedConstant(
            *(
                np.ascontiguousarray(a.transpose(order))
                for a in (self.values, self.scale, self.zero)
            )
        )

    def reshaped(self, shape: tuple[int, ...]) -> QuantisedConstant:
        """The same elements in another shape."""
        parts = [self.values.reshape(shape)]
        for array in (self.scale, self.zero):
            if array.size == 1:
                parts.append(array.reshape((1,) * len(shape)))
            else:
                parts.append(np.broadcast_to(array, self.values.shape).reshape(shape))
        return QuantisedConstant(*parts)

    def call(self) -> Expr | None:
        """As a `dequantize` of constants; None where no single axis has the scales."""
        both = np.broadcast_shapes(self.scale.shape, self.zero.shape)
        varying = [axis for axis, extent in enumerate(both) if extent > 1]
        if len(varying) > 1:
            return None
        axis = varying[0] if varying else 0
        flat = (both[axis],) if varying else ()
        scale, zero = (np.broadcast_to(a, both).reshape(flat) for a in (self.scale, self.zero))
        zero = zero.astype(self.values.dtype)
        return relax.op.dequantize(
            relax.const(self.values), relax.const(scale), relax.const(zero), axis
        )


def read_quantised(call: Expr) -> QuantisedConstant | None:
    """What a `dequantize` of constants stands for; None for anything else."""
    if not isinstance(call, relax.Call) or operator_name(call) != "dequantize":
        return None
    values = constant(call.args[0])
    return None if values is None else QuantisedConstant.of(call, values)


def has_quantised(module: Any) -> bool:
    """Whether any value of `main` is rounded to integers, or made of them."""
    blocks = module["main"].body.blocks
    values = [binding.value for block in blocks for binding in block.bindings]
    names = {operator_name(value) for value in values if isinstance(value, relax.Call)}
    return bool(names & {"quantize", "dequantize"})


def simplify_around(module: Any, simplify: Callable[[Any], Any]) -> Any:
    """A simplified module that still has the integers of its weights."""
    lifting = _Lifting(module)
    function = lifting.visit_expr(module["main"])
    count = len(function.params)
    params = [*function.params, *lifting.found]
    lifted = module.clone()
    whole = relax.Function(params, function.body, None, is_pure=True)
    lifted.update_func(lifted.get_global_var("main"), _with_attrs_of(whole, function))
    simple = simplify(lifted)
    function = simple["main"]
    constants = dict(zip(function.params[count:], lifting.found.values(), strict=True))
    body = _Restoring(simple, constants).visit_expr(function.body)
    whole = relax.Function(function.params[:count], body, None, is_pure=True)
    simple.update_func(simple.get_global_var("main"), _with_attrs_of(whole, function))
    return relax.transform.CanonicalizeBindings()(simple)


def _with_attrs_of(function: Any, source: Any) -> Any:
    return function.with_attrs(source.attrs) if source.attrs else function


@mutator
class _Lifting(PyExprMutator):  # type: ignore[misc]
    """Puts a variable in the place of every quantised constant."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.found: dict[Expr, QuantisedConstant] = {}

    def visit_call_(self, call: Expr) -> Expr:
        call = self.visit_expr_post_order(call)
        made = self._read(call)
        if made is None:
            return call
        var = relax.Var(
            f"quantised_{len(self.found)}", relax.TensorType(made.values.shape, "float32")
        )
        self.found[var] = made
        return var

    def _read(self, call: Expr) -> QuantisedConstant | None:
        name = operator_name(call)
        if name == "dequantize":
            values = constant(self._source(call.args[0]))
            return None if values is None else QuantisedConstant.of(call, values)
        if name not in (*RESHAPES, "permute_dims"):
            return None
        known, shape = self.found.get(self._source(call.args[0])), shape_of(call)
        if known is None or shape is None:
            return None
        if name == "permute_dims":
            axes = call.attrs.axes
            return known.transposed(None if axes is None else [int(axis) for axis in axes])
        return known.reshaped(shape)

    def _source(self, value: Expr) -> Expr:
        """What a variable is bound to, through names of names."""
        while isinstance(value, relax.Var) and value not in self.found:
            bound = self.lookup_binding(value)
            if bound is None:
                break
            value = bound
        return value


@mutator
class _Restoring(PyExprMutator):  # type: ignore[misc]
    """Puts the constants back: as integers where a product reads them, else as floats."""

    def __init__(self, module: Any, constants: dict[Expr, QuantisedConstant]) -> None:
        super().__init__(module)
        self._constants = constants
        self._made: dict[Expr, Expr] = {}

    def visit_call_(self, call: Expr) -> Expr:
        known = None
        if operator_name(call) in PRODUCTS:
            known = self._constants.get(call.args[1])
        restored = None if known is None else known.call()
        arguments = [self.visit_expr(argument) for argument in call.args]
        if restored is not None:
            if call.args[1] not in self._made:
                self._made[call.args[1]] = self.builder_.emit(restored)
            arguments[1] = self._made[call.args[1]]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def visit_var_(self, var: Expr) -> Expr:
        known = self._constants.get(var)
        return super().visit_var_(var) if known is None else relax.const(known.floats())
