"""What integer kernels compute: sums of u8 times s8, and what becomes of a sum.

Activations are u8 in NHWC: value q stands for scale * (q - zero). Signed activations are stored as
q + 128 with zero + 128, which is the same number. Weights are s8 with zero point 0. A sum is exact:

    sum[o] = offset[o] + sum over the window of weight[o, i, kh, kw] * (x[i, ...] - x_zero)

Padding stands for the real number 0, that is for x_zero. What follows is computed in float32, in
this order:

    v = sum[o] * scale[o]
    v = clamp(rint(v), middle.low, middle.high) * middle.factor     if there is a middle rounding
    v = v + late_bias[o]                                            if there is a late bias
    v = v + (residual - residual.zero) * residual.factor            if there is a residual, of u8
    v = v + residual                                                or of float32, as y is then
    v = activation(v) * factor                                      if there is a function
    y = clamp(rint(v) + zero, low, high) as u8, or v as float32

rint rounds halves to even. Without a function, v counts steps of the output (or is the real number,
where the output is float32); with one, it is the real number until the function is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.spec import Activation

STEPS = ("middle_low", "middle_high", "middle_factor", "residual_factor", "shift", "factor")
"""Places of the numbers that an epilogue reads at run time; shift is -zero * factor of residual."""


@dataclass(frozen=True)
class Rounding:
    """What a sum is rounded to before the residual is added.

    Limits count from the zero point (so the whole of u8 with zero 3 is -3 to 252); `factor` is the
    size of a step in units of what follows.
    """

    low: int
    high: int
    factor: float


@dataclass(frozen=True)
class Residual:
    """A u8 tensor of the output's shape: (value - zero) * factor is added.

    real: it is a float32 tensor, which is added as it is; so is the output then.
    """

    zero: int
    factor: float
    real: bool = False


@dataclass(frozen=True)
class IntegerEpilogue:
    """The part of an epilogue that decides the code: equal for functions that may be shared.

    activation: a function of real numbers; relu and clip are limits of the output instead.
    out: "uint8", or "float32" for real numbers.
    zero, low, high: of the output, where it is u8.
    real_residual: the residual is of float32.
    in_place: y is written over the residual, which has no memory of its own afterwards.
    """

    middle: bool = False
    late_bias: bool = False
    residual: bool = False
    real_residual: bool = False
    activation: Activation = field(default_factory=Activation)
    out: Literal["uint8", "float32"] = "uint8"
    zero: int = 0
    low: int = 0
    high: int = 255
    in_place: bool = False


@dataclass(frozen=True, eq=False)
class Integers:
    """What an integer problem has beyond its geometry and its int8 weight.

    x_zero: the zero point of the u8 input.
    offset: int32 (out,), the bias in units of the sum; None for none.
    scale: float32 (out,): what one unit of the sum counts. (1,) for what has no weights: averages
        (one step of the input counts as much, and the kernel divides by the number of pixels),
        sums, products, `quantise` (the size of a step of its output) and `dequantise` (of its
        input).
    late_bias: float32 (out,), of convolutions and matrix products with outputs in lanes.
    """

    x_zero: int
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.int32] | None = None
    middle: Rounding | None = None
    late_bias: npt.NDArray[np.float32] | None = None
    residual: Residual | None = None
    activation: Activation = field(default_factory=Activation)
    factor: float = 1.0
    out: Literal["uint8", "float32"] = "uint8"
    zero: int = 0
    low: int = 0
    high: int = 255
    in_place: bool = False

    @property
    def epilogue(self) -> IntegerEpilogue:
        """What the function depends on."""
        residual = self.residual
        return IntegerEpilogue(
            self.middle is not None, self.late_bias is not None, residual is not None,
            residual is not None and residual.real, self.activation,
            self.out, self.zero, self.low, self.high, self.in_place,
        )  # fmt: skip

    @property
    def steps(self) -> npt.NDArray[np.float32]:
        """The numbers of `STEPS` in their order, zeros where there is nothing to say."""
        middle, residual = self.middle, self.residual
        low, high, middle_factor = (
            (0, 0, 0.0) if middle is None else (middle.low, middle.high, middle.factor)
        )
        zero, residual_factor = (0, 0.0) if residual is None else (residual.zero, residual.factor)
        shift = -zero * residual_factor
        return np.array([low, high, middle_factor, residual_factor, shift, self.factor], np.float32)


def whole_offset(weight: npt.NDArray[np.int8], integers: Integers) -> npt.NDArray[np.int32]:
    """What sums over raw u8 values begin with: the bias less x_zero times the weights' sum."""
    total = weight.reshape(weight.shape[0], -1).astype(np.int64).sum(1) * integers.x_zero
    offset = 0 if integers.offset is None else integers.offset.astype(np.int64)
    whole: npt.NDArray[np.int32] = (offset - total).astype(np.int32)
    return whole


@dataclass(frozen=True)
class Quantise:
    """Real numbers (batch, channels, height, width) to u8 (batch, height, width, channels)."""

    batch: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Dequantise:
    """The way back: u8 (batch, height, width, channels) to (batch, channels, height, width)."""

    batch: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Table:
    """A function of one u8: y[i] = table[x[i]] for `count` values."""

    count: int


@dataclass(frozen=True)
class Sum:
    """The sum of two u8 tensors of `count` values, each with a scale and a zero point."""

    count: int


@dataclass(frozen=True)
class Gate:
    """Products of u8: x (batch, pixels, channels) times a gate (batch, channels).

    With one pixel the gate has the shape of x.
    """

    batch: int
    pixels: int
    channels: int
