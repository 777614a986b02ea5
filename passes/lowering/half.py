"""Lower for kernels that read and write NHWC of 16 bits, with as few changes of layout as can be.

A value of the model has up to two forms, each made when something first needs it and then kept:

- plain: as in the model, NCHW float32. Inputs and outputs of the model are plain.
- half: (N, H, W, C) float16 or bfloat16, channels rounded up to a multiple of 8. What the channels
  behind the last hold is finite, and nobody relies on it. (N, C) is taken for an image of one
  pixel.

Kernels take and give halves. Of the other operators, these stay among halves if one of their
operands has that form already:

1. elementwise functions of one value, or of two that broadcast, computed in float32;
2. concatenations, and paddings of rows and columns;
3. reshapes between (N, C) and (N, C, 1, 1), which are free.

Everything else is computed plain, whatever it is, and so are LSTM and GRU, by a kernel. So between
convolutions with only 1 to 3 in between, activations never change their layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from nmcompile.kernels.avx512_bf16 import layout
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.sparse_tensor_core.tiles import padded
from nmcompile.kernels.spec import Linear
from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.kernels import Lowering
from nmcompile.passes.lowering.matching.match import Group
from nmcompile.passes.lowering.view import Expr, constant, operator_name, scalar, shape_of
from nmcompile.runtime.specs import numpy_dtype

Shape = tuple[int, ...]

# Finite for zero, so that the channels behind the last stay finite.
_UNARY = frozenset(
    {
        "abs", "clip", "negative", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu",
        "nn.relu6", "nn.silu", "sigmoid", "tanh",
    }
)  # fmt: skip
_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": relax.op.add,
    "subtract": relax.op.subtract,
    "multiply": relax.op.multiply,
    "maximum": relax.op.maximum,
    "minimum": relax.op.minimum,
}
_PLAIN = ("recurrent",)  # whose kernels read and write float32
_AXES = {0: 0, 1: 3, 2: 1, 3: 2}  # of (N, C, H, W) in (N, H, W, C)


class HalfLowering(Lowering):
    """See the module."""

    dtype = "float16"
    padded = staticmethod(padded)  # channels in memory of so many

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._halves: dict[Expr, Expr] = {}

    # Kernels.

    def _problem(self, group: Group) -> Problem:
        problem = super()._problem(group)
        return replace(problem, dtype="float32") if group.op in _PLAIN else problem

    def operand(self, group: Group, value: Expr) -> Expr:
        """The half form; rows of vectors where the kernel is a matrix product."""
        if group.op in _PLAIN:
            return super().operand(group, value)
        linear = group.spec
        if not isinstance(linear, Linear) or len(linear.lead) == 1:
            return self.half(value)
        features = linear.in_features if value.same_as(group.x) else linear.out_features
        flat = self._emit(relax.op.reshape(self.substitute(value), (linear.rows, features)))
        return self._to_half(flat)

    def result_type(self, group: Group) -> Any:
        """The half form of what the operator computes."""
        if group.op in _PLAIN:
            return super().result_type(group)
        linear = group.spec
        shape = shape_of(group.out)
        if isinstance(linear, Linear):
            shape = (linear.rows, linear.out_features)
        return relax.TensorType(self._half_shape(shape), self.dtype)

    def keep(self, group: Group, result: Expr) -> None:
        """Keep the half form; more than two dimensions of vectors have none, and become plain."""
        if group.op in _PLAIN:
            super().keep(group, result)
            return
        linear, half = group.spec, self._emit(result)
        if not isinstance(linear, Linear) or len(linear.lead) == 1:
            self._halves[group.out] = half
            return
        flat = self._to_plain(half, (linear.rows, linear.out_features))
        self._values[group.out] = self._emit(relax.op.reshape(flat, shape_of(group.out)))

    # The two forms.

    def _half_shape(self, shape: Shape | None) -> Shape | None:
        """The shape of a value's half form, None if it has none."""
        if shape is None or len(shape) not in (2, 4):
            return None
        n, c, h, w = shape if len(shape) == 4 else (*shape, 1, 1)
        return (n, h, w, self.padded(c))

    def known(self, value: Expr) -> Expr | None:
        """The plain form."""
        if value not in self._values and value in self._halves:
            self._values[value] = self._to_plain(self._halves[value], shape_of(value))
        return self._values.get(value)

    def half(self, value: Expr) -> Expr:
        """The half form of a value that has one."""
        if value not in self._halves:
            array = constant(value)
            if array is not None:
                return self._constant(array, self.dtype)
            self._halves[value] = self._to_half(self.substitute(value))
        return self._halves[value]

    def _emit(self, value: Expr) -> Expr:
        return self._builder.emit(value)

    def _to_half(self, plain: Expr) -> Expr:
        shape = shape_of(plain)
        assert shape is not None
        if len(shape) == 4:
            value = self._emit(relax.op.permute_dims(plain, (0, 2, 3, 1)))
        else:
            value = self._emit(relax.op.reshape(plain, (shape[0], 1, 1, shape[1])))
        return self._pad(self._emit(relax.op.astype(value, self.dtype)), shape[1])

    def _to_plain(self, half: Expr, shape: Shape | None) -> Expr:
        assert shape is not None
        value = self._emit(relax.op.astype(self._cut(half, shape[1]), "float32"))
        if len(shape) == 2:
            return self._emit(relax.op.reshape(value, shape))
        return self._emit(relax.op.permute_dims(value, (0, 3, 1, 2)))

    def _pad(self, value: Expr, channels: int) -> Expr:
        missing = self.padded(channels) - channels
        if not missing:
            return value
        return self._emit(relax.op.nn.pad(value, (0, 0, 0, 0, 0, 0, 0, missing)))

    def _cut(self, half: Expr, channels: int) -> Expr:
        """Without the channels behind the last."""
        if self.padded(channels) == channels:
            return half
        return self._emit(relax.op.strided_slice(half, [3], [0], [channels]))

    def _constant(self, array: npt.NDArray[Any], dtype: str) -> Expr:
        """A constant of the model's layout as a parameter in the half layout."""
        whole = array.reshape((1,) * (4 - array.ndim) + array.shape)
        lines = whole.transpose(0, 2, 3, 1)
        missing = self.padded(lines.shape[3]) - lines.shape[3] if lines.shape[3] > 1 else 0
        lines = np.pad(lines, [(0, 0)] * 3 + [(0, missing)])
        return self.param(
            f"constant.{len(self._vars)}", np.ascontiguousarray(lines, numpy_dtype(dtype))
        )

    # Other operators.

    def lower_other(self, var: Expr, value: Expr) -> None:
        """Among halves by one of the rules, else plain."""
        half = self._among_halves(var, value) if isinstance(value, relax.Call) else None
        if half is None:
            super().lower_other(var, value)
        else:
            self._halves[var] = half

    def _among_halves(self, var: Expr, value: Expr) -> Expr | None:
        shape = self._half_shape(shape_of(var))
        if shape is None or str(var.ty.dtype) != "float32":
            return None
        name = operator_name(value)
        arguments = list(value.args)
        if str(getattr(value.op, "name", "")) == "relax.call_tir":
            name, arguments = name.split("_")[0].rstrip("0123456789"), list(value.args[1])
        if name in RESHAPES:
            half = self._halves.get(arguments[0])
            one_pixel = half is not None and shape[1:3] == (1, 1) and shape_of(half) == shape
            return half if one_pixel else None
        if name == "concat":
            return self._concat(var, value)
        if name == "nn.pad" and arguments[0] in self._halves:
            return self._pad_pixels(value)
        if name in _UNARY and arguments[0] in self._halves:
            single = self._single(self._halves[arguments[0]])
            call = relax.Call(value.op, [single, *arguments[1:]], value.attrs, value.ty_args)
            return self._rounded(call)
        if name in _BINARY and any(a in self._halves for a in arguments):
            sides = [self._side(a, var) for a in arguments]
            if all(side is not None for side in sides):
                return self._rounded(_BINARY[name](*sides))
        return None

    def _pad_pixels(self, value: Expr) -> Expr | None:
        """Padding of (N, C, H, W) by a constant; None for other paddings."""
        width, attrs = [int(extent) for extent in value.attrs.pad_width], value.attrs
        if attrs.pad_mode != "constant" or len(width) != 8 or any(width[:4]) or min(width) < 0:
            return None
        moved = [width[2 * axis + side] for axis in (0, 2, 3, 1) for side in (0, 1)]
        fill = getattr(attrs.pad_value, "value", attrs.pad_value)
        return self._emit(
            relax.op.nn.pad(self._halves[value.args[0]], moved, "constant", float(fill))
        )

    def _single(self, half: Expr) -> Expr:
        return self._emit(relax.op.astype(half, "float32"))

    def _rounded(self, value: Expr) -> Expr:
        return self._emit(relax.op.astype(self._emit(value), self.dtype))

    def _side(self, value: Expr, var: Expr) -> Expr | None:
        """One operand of an elementwise function, float32 in the half layout; None: plain only."""
        if scalar(value) is not None:
            return relax.const(np.float32(scalar(value)))
        shape, own = shape_of(var) or (), shape_of(value)
        rank = len(shape)
        if own is None or str(value.ty.dtype) != "float32" or len(own) > rank:
            return None
        array = constant(value)
        if array is not None:
            extended = array.reshape((1,) * (rank - array.ndim) + array.shape)
            image = extended.reshape(extended.shape + (1,) * (4 - rank))
            return self._constant(image, "float32")
        if len(own) != rank:
            return None
        single = self._single(self.half(value))
        # One channel is for all of them, and not the first of eight.
        return (
            self._emit(relax.op.strided_slice(single, [3], [0], [1]))
            if own[1] < shape[1]
            else single
        )

    def _concat(self, var: Expr, value: Expr) -> Expr | None:
        operands, shape = value.args[0], shape_of(var)
        if not isinstance(operands, relax.Tuple) or shape is None:
            return None
        parts = list(operands.fields)
        if not any(part in self._halves for part in parts):
            return None
        axis = int(value.attrs.axis) % len(shape)
        halves = [self.half(part) for part in parts]
        if axis == 1:
            channels = [(shape_of(part) or ())[1] for part in parts]
            halves = [self._cut(half, c) for half, c in zip(halves, channels, strict=True)]
        joined = self._emit(relax.op.concat(halves, _AXES[axis]))
        return self._pad(joined, shape[1]) if axis == 1 else joined


class BrainLowering(HalfLowering):
    """The same in bfloat16, for CPUs."""

    dtype = "bfloat16"
    padded = staticmethod(layout.padded)
