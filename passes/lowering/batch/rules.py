"""Which operators of a function treat the images of a batch alone, each by a rule of `_RULES`.

1. convolutions and poolings of NCHW activations, paddings and concatenations of other axes;
2. elementwise functions of one value, or of two values or a value and a constant, provided that
   both sides have the batch in front or the constant does not reach it;
3. means and maxima over other axes.

Whatever is not in the table, a reshape for one, is taken to mix images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax

from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of


class Early:
    """What may run before a cut: the operators of one function that treat images alone.

    before: for each such value, all values that it is computed from and itself, as bits of the
        positions in `order`.
    """

    def __init__(self, function: Any, view: FunctionView, batch: int) -> None:
        self._view, self._batch = view, batch
        self.order = list(view.definitions)
        self._bit = {var: 1 << index for index, var in enumerate(self.order)}
        self.before: dict[Expr, int] = {}
        self._users = [
            sum(self._bit[user] for user in view.users.get(var, ())) for var in self.order
        ]
        self._returned = sum(bit for var, bit in self._bit.items() if var in view.outputs)
        self._inputs = {param for param in function.params if self._is_batched(param)}
        for var, value in view.definitions.items():
            if not self._is_batched(var) or not isinstance(value, relax.Call):
                continue
            rule = _RULES.get(view.op(var))
            if rule is None or not rule(self, var):
                continue
            before = self._bit[var]
            for used in self._view.operands(var):
                before |= self.before.get(used, 0)
            self.before[var] = before

    def _is_batched(self, expr: Expr) -> bool:
        shape = shape_of(expr)
        return bool(shape and shape[0] == self._batch) and str(expr.ty.dtype) == "float32"

    def is_early(self, expr: Expr) -> bool:
        """Whether a value can be computed for a few images alone."""
        return expr in self._inputs or expr in self.before

    def members(self, cut: Expr) -> list[Expr]:
        """The values before a cut and itself, in order."""
        before = self.before[cut]
        return [var for index, var in enumerate(self.order) if before >> index & 1]

    def separates(self, cut: Expr) -> bool:
        """Whether nothing behind a cut uses what is before it, but for its own value."""
        before = self.before[cut]
        inside = before & ~self._bit[cut]
        if inside & self._returned:
            return False
        return all(
            users & ~before == 0 for index, users in enumerate(self._users) if inside >> index & 1
        )

    # The rules: whether an operator treats the images alone.

    def value_alone(self, var: Expr) -> bool:
        """One early value, and no other tensor."""
        operands = self._view.operands(var)
        return len(operands) == 1 and self.is_early(operands[0])

    def elementwise(self, var: Expr) -> bool:
        """Two operands, of which constants do not tell images apart."""
        rank = len(shape_of(var) or ())
        for operand in self._view.operands(var):
            shape = shape_of(operand)
            if shape is None:
                return False
            if self.is_early(operand):
                if len(shape) != rank:
                    return False
            elif constant(operand) is None or (len(shape) == rank and shape[0] != 1):
                return False
        return True

    def conv2d(self, var: Expr) -> bool:
        """A convolution by constants; the batch is the first axis of the activations."""
        x, weight = self._view.args(var)[:2]
        attrs = self._view.definitions[var].attrs
        layouts = (attrs.data_layout, attrs.out_layout or "NCHW")
        return layouts == ("NCHW", "NCHW") and self.is_early(x) and constant(weight) is not None

    def pool2d(self, var: Expr) -> bool:
        """A pooling window over images."""
        attrs = self._view.definitions[var].attrs
        return attrs.layout == "NCHW" and self.value_alone(var)

    def pad(self, var: Expr) -> bool:
        """A padding that adds no images."""
        width = [int(p) for p in self._view.definitions[var].attrs.pad_width]
        return not any(width[:2]) and self.is_early(self._view.args(var)[0])

    def reduction(self, var: Expr) -> bool:
        """A reduction within each image."""
        rank = len(shape_of(self._view.args(var)[0]) or ())
        axes = self._view.definitions[var].attrs.axis
        within = axes is not None and all(int(axis) % rank for axis in axes)
        return within and self.value_alone(var)

    def concat(self, var: Expr) -> bool:
        """Early values one behind the other, not along the batch."""
        axis = self._view.definitions[var].attrs.axis
        rank = len(shape_of(var) or ())
        within = axis is not None and int(axis) % rank != 0
        return within and all(self.is_early(operand) for operand in self._view.operands(var))


_UNARY = (
    "abs", "clip", "erf", "exp", "negative", "nn.gelu", "nn.leakyrelu", "nn.relu", "nn.silu",
    "nn.softplus", "sigmoid", "sqrt", "tanh",
)  # fmt: skip
_BINARY = ("add", "divide", "maximum", "minimum", "multiply", "subtract")

_RULES: dict[str, Callable[[Early, Expr], bool]] = {
    **dict.fromkeys(_UNARY, Early.value_alone),
    **dict.fromkeys(_BINARY, Early.elementwise),
    "nn.conv2d": Early.conv2d,
    "nn.max_pool2d": Early.pool2d,
    "nn.avg_pool2d": Early.pool2d,
    "nn.adaptive_avg_pool2d": Early.pool2d,
    "nn.pad": Early.pad,
    "mean": Early.reduction,
    "max": Early.reduction,
    "concat": Early.concat,
}
