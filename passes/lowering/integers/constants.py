"""Integer weights through a simplification that would compute their real numbers.

A weight stands as dequantize(integers, scale, zero point), which folding would turn into float32.
So it waits as an argument of the function while the rest is simplified; views of it are computed on
the integers. Behind everything that has no kernel for integers it becomes a float32 constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.view import Expr, constant, operator_name, shape_of

PRODUCTS = ("nn.conv2d", "matmul")
"""Operators whose second argument may be a weight of integers."""


def read_quantised(call: Expr, values: npt.NDArray[Any] | None = None) -> QuantisedConstant | None:
    """What a `dequantize` of constants stands for; None for anything else.

    `values` are what it reads, where that is not written in the call itself.
    """
    if not isinstance(call, relax.Call) or operator_name(call) != "dequantize":
        return None
    values = constant(call.args[0]) if values is None else values
    scale, zero = constant(call.args[1]), constant(call.args[2])
    if values is None or scale is None or zero is None:
        return None
    return QuantisedConstant(values, scale, zero, int(call.attrs.axis) % max(values.ndim, 1))


def _call(known: QuantisedConstant) -> Expr:
    """A `dequantize` of constants."""
    size = max(known.scale.size, known.zero.size)
    shape = (size,) if size > 1 else ()
    scale, zero = (
        np.broadcast_to(numbers.reshape(-1), (size,)).reshape(shape)
        for numbers in (known.scale, known.zero)
    )
    values = np.ascontiguousarray(known.values)
    return relax.op.dequantize(
        relax.const(values), relax.const(scale), relax.const(zero.astype(values.dtype)), known.axis
    )


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
        source = self._source(call.args[0]) if call.args else None
        made = read_quantised(call, None if source is None else constant(source))
        if made is None and source in self.found:
            known, shape, name = self.found[source], shape_of(call), operator_name(call)
            if name == "permute_dims":
                axes = call.attrs.axes or reversed(range(known.values.ndim))
                made = known.transposed([int(axis) for axis in axes])
            elif name in RESHAPES and shape is not None:
                made = known.reshaped(shape)
                if made is None:  # its slices lie along no axis any more
                    return relax.const(known.real.reshape(shape))
        if made is None:
            return call
        var = relax.Var(
            f"quantised_{len(self.found)}", relax.TensorType(made.values.shape, "float32")
        )
        self.found[var] = made
        return var

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
        arguments = [self.visit_expr(argument) for argument in call.args]
        weight = call.args[1] if operator_name(call) in PRODUCTS else None
        if weight in self._constants:
            if weight not in self._made:
                self._made[weight] = self.builder_.emit(_call(self._constants[weight]))
            arguments[1] = self._made[weight]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)

    def visit_var_(self, var: Expr) -> Expr:
        known = self._constants.get(var)
        return super().visit_var_(var) if known is None else relax.const(known.real)
