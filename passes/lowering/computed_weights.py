"""Convolutions whose weights are computed, as products with a matrix of what each window reads.

Attention over kernels, filters that a network makes itself, and trackers that look for a template
have them. Kernels read weights packed at compile time, and TVM's own lowering multiplies them one
by one, while a product of two activations has a kernel. The columns of the matrix are the windows,
its rows their taps and channels (im2col, Chellapilla et al., IWFHR 2006, section 3.1).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.view import constant, operator_name, shape_of

Expr = Any

MOST_BYTES = 1 << 26
"""Of the matrix: a larger one costs more memory than the time is worth."""
FEWEST_OUTPUTS = 4
"""Of a group: with fewer, the matrix is read too seldom to be worth being written."""


def multiply_windows(module: Any) -> Any:
    """A module whose convolutions with computed weights are products.

    Args:
        module: simplified, with static shapes.
    """
    function = module["main"]
    if not isinstance(function.body, relax.SeqExpr):
        return module  # lower_kernels refuses it, and says why
    made = module.clone()
    made.update_func(made.get_global_var("main"), _Windows(made).visit_expr(function))
    return made


@mutator
class _Windows(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Expr) -> Expr:
        """The call, or the product that it is."""
        call = super().visit_call_(call)
        if operator_name(call) != "nn.conv2d" or self._is_constant(call.args[1]):
            return call
        x, weight, out = call.args[0], call.args[1], shape_of(call)
        shape, window, attrs = shape_of(x), shape_of(weight), call.attrs
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        if out is None or shape is None or window is None or layouts != ("NCHW", "OIHW", "NCHW"):
            return call
        batch, channels, *_ = shape
        outputs, inputs, *kernel = window
        groups, taps = int(attrs.groups), math.prod(kernel)
        count = math.prod(out[2:])
        if str(call.ty.dtype) != "float32" or outputs // groups < FEWEST_OUTPUTS:
            return call
        if batch * channels * taps * count * 4 > MOST_BYTES:
            return call
        top, left, bottom, right = (int(size) for size in attrs.padding)
        if top or left or bottom or right:
            x = self._emit(relax.op.nn.pad(x, [0, 0, 0, 0, top, bottom, left, right]))
        lead = (batch, groups) if groups > 1 else (batch,)
        read = [
            self._emit(relax.op.reshape(tap, (*lead, inputs, count)))
            for tap in self._taps(x, call, kernel, out)
        ]
        axis = len(lead)
        columns = read[0] if taps == 1 else self._emit(relax.op.concat(read, axis))
        if taps > 1:
            weight = self._emit(relax.op.permute_dims(weight, [0, 2, 3, 1]))
        rows = (outputs // groups, taps * inputs)
        weight = self._emit(relax.op.reshape(weight, (*lead[1:], *rows)))
        product = self._emit(relax.op.matmul(weight, columns))
        return relax.op.reshape(product, out)

    def _taps(self, x: Expr, call: Expr, kernel: list[int], out: tuple[int, ...]) -> list[Expr]:
        """What each tap of the window reads, in the shape of an output plane."""
        strides = [int(size) for size in call.attrs.strides]
        dilation = [int(size) for size in call.attrs.dilation]
        if kernel == [1, 1] and strides == [1, 1]:
            return [x]
        found = []
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                begin = [row * dilation[0], column * dilation[1]]
                end = [b + (o - 1) * s + 1 for b, o, s in zip(begin, out[2:], strides, strict=True)]
                found.append(self._emit(relax.op.strided_slice(x, [2, 3], begin, end, strides)))
        return found

    def _is_constant(self, value: Expr) -> bool:
        bound = self.lookup_binding(value) if isinstance(value, relax.Var) else value
        return bound is not None and constant(bound) is not None

    def _emit(self, value: Expr) -> Expr:
        return self.builder_.emit(value)
