"""What a kernel is asked to compute: geometry, fused epilogue, element type. No code generation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ActivationKind = Literal[
    "none", "relu", "clip", "sigmoid", "silu", "hard_sigmoid", "hard_swish", "gelu", "gelu_tanh"
]

GELU_TANH = (math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi))
"""Factors of x and x^3 in the tangent of `gelu_tanh`."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function, of the sum of convolution, bias and residual, or of a tensor.

    `clip` limits to [low, high]; `hard_sigmoid` is clip(x / 6 + 1 / 2, 0, 1) and `hard_swish` is x
    times that (MobileNetV3, section 5.2); `silu` is x * sigmoid(x); `gelu` is the exact,
    erf-based form, `gelu_tanh` x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks and
    Gimpel, arXiv 1606.08415).
    """

    kind: ActivationKind = "none"
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        return f"clip({self.low:g},{self.high:g})" if self.kind == "clip" else self.kind


@dataclass(frozen=True)
class Epilogue:
    """What is fused behind the accumulation: y = activation(sum + bias + residual).

    `in_place`: y is written over the residual, which has no memory of its own afterwards.
    """

    bias: bool = False
    residual: bool = False
    activation: Activation = Activation()
    in_place: bool = False


@dataclass(frozen=True)
class Conv2d:
    """A two-dimensional convolution, NCHW activations and OIHW weights.

    Output: y[n, o, oh, ow] = sum over (i, kh, kw) of
    w[o, i, kh, kw] * x[n, g*in/groups + i, oh*sh + kh*dh - top, ow*sw + kw*dw - left].
    `padding` is (top, left, bottom, right) in pixels.
    """

    batch: int
    in_channels: int
    in_height: int
    in_width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output, pixels."""
        top, _, bottom, _ = self.padding
        span = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.in_height + top + bottom - span) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output, pixels."""
        _, left, _, right = self.padding
        span = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.in_width + left + right - span) // self.stride[1] + 1

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of input and output, NCHW."""
        return (
            (self.batch, self.in_channels, self.in_height, self.in_width),
            (self.batch, self.out_channels, self.out_height, self.out_width),
        )

    @property
    def out_pixels(self) -> int:
        """Pixels of one output channel of one image."""
        return self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """Weights per (output, input) channel pair."""
        return self.kernel[0] * self.kernel[1]

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates of one call, over the whole batch."""
        return self.batch * self.out_pixels * self.out_channels * self.group_in * self.taps

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel reads exactly the input pixel at its own position."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0, 0, 0)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel."""
        return self.groups > 1 and self.group_in == 1


@dataclass(frozen=True)
class Pool2d:
    """A pooling window over NCHW activations; `padding` is (top, left, bottom, right) in pixels.

    `kind` "average" divides by the window's size with `count_include_pad`, else by the number of
    input pixels that the window really covers.
    """

    kind: Literal["max", "average"]
    batch: int
    channels: int
    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = False


@dataclass(frozen=True)
class GlobalAverage:
    """The mean over all pixels of each channel: (batch, channels, height, width) to `out_shape`."""

    batch: int
    channels: int
    height: int
    width: int
    out_shape: tuple[int, ...]


@dataclass(frozen=True)
class Linear:
    """A matrix product with constant weights: y[..., o] = sum over i of x[..., i] * w[o, i].

    `lead` is the shape of x without its last dimension.
    """

    lead: tuple[int, ...]
    in_features: int
    out_features: int

    @property
    def rows(self) -> int:
        """Vectors multiplied by the weights in one call."""
        return math.prod(self.lead)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of input and output."""
        return (*self.lead, self.in_features), (*self.lead, self.out_features)

    @property
    def as_conv(self) -> Conv2d:
        """The 1x1 convolution that it is, its rows as the pixels of one image."""
        return Conv2d(1, self.in_features, 1, self.rows, self.out_features, (1, 1))

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates of one call."""
        return self.rows * self.in_features * self.out_features


@dataclass(frozen=True)
class Elementwise:
    """The epilogue's activation of every number of a tensor, which no product goes before."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Strides:
    """Where the elements of an operand of an attention or product lie in a tensor, in its elements.

    operand: which of the tensors that the kernel reads.
    offset: of the first element; lead, token, feature: from one to the next, along each axis.
    """

    operand: int
    offset: int
    lead: tuple[int, ...]
    token: int
    feature: int


@dataclass(frozen=True)
class Mask:
    """What becomes of the scores of an attention before the softmax, from a float32 tensor.

    where: the element for query q and key k is at `token` q and `feature` k.
    hides: a score is replaced by the element where that is below 0, and left alone where it is 0;
        else the element is added.
    """

    where: Strides
    hides: bool = False


@dataclass(frozen=True)
class Attention:
    """softmax(scale q k^T, masked) v for each pair of batch and head: float32, over the keys.

    lead: extents of the axes in front of queries and keys: batch and heads, or groups of heads
        that share keys.
    operands: shapes of the tensors that hold q (queries x size), k (keys x size), v (keys x
        value_size) and the masks.
    out: where the result (queries x value_size) goes in a tensor of `out_shape`.
    masks: applied in order.
    zero_hidden: whether the result is 0 where all scores of a query are -inf, and not NaN.
    """

    lead: tuple[int, ...]
    queries: int
    keys: int
    size: int
    value_size: int
    scale: float
    operands: tuple[tuple[int, ...], ...]
    q: Strides
    k: Strides
    v: Strides
    out: Strides
    out_shape: tuple[int, ...]
    masks: tuple[Mask, ...] = ()
    zero_hidden: bool = False

    @property
    def heads(self) -> int:
        """Of all of the batch."""
        return math.prod(self.lead)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both products of one call."""
        return self.heads * self.queries * self.keys * (self.size + self.value_size)


@dataclass(frozen=True)
class Product:
    """a b of two activations for each pair of a batch: float32 (rows, depth) and (depth, columns).

    lead: extents of the axes in front, of as many as both have strides for.
    operands: shapes of the tensors that hold a and b.
    a, b: where they lie there; of b, `token` is along the depth.
    out_shape: of the result, without gaps.
    """

    lead: tuple[int, ...]
    rows: int
    columns: int
    depth: int
    operands: tuple[tuple[int, ...], ...]
    a: Strides
    b: Strides
    out_shape: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Of all of the batch."""
        return math.prod(self.lead)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return self.pairs * self.rows * self.columns * self.depth


@dataclass(frozen=True)
class LayerNorm:
    """Rows of x with mean 0 and variance 1, times a scale, plus a shift: (rows, features).

    shape: of x. features: of a row, the product of its last extents.
    centred: whether the mean is taken away; else only the mean of the squares is 1 (RMS norm).
    """

    shape: tuple[int, ...]
    features: int
    epsilon: float
    scale: bool = True
    shift: bool = True
    centred: bool = True

    @property
    def rows(self) -> int:
        """How many."""
        return math.prod(self.shape) // self.features


@dataclass(frozen=True)
class Softmax:
    """exp(x) over its sum along one axis; x of shape (outer, length, inner) in memory.

    log: the logarithm of that.
    """

    shape: tuple[int, ...]
    outer: int
    length: int
    inner: int
    log: bool = False


@dataclass(frozen=True)
class Positions:
    """Where along one axis the largest number is, or the smallest; x is (outer, length, inner).

    shape, out_shape: of x and of the positions, int64.
    """

    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    outer: int
    length: int
    inner: int
    largest: bool


@dataclass(frozen=True)
class GroupNorm:
    """Groups of channels of an image with mean 0 and variance 1; scales and shifts of channels.

    shape: of x, (batch, channels, ...).
    groups: of consecutive channels; as many as there are channels in an instance norm.
    """

    shape: tuple[int, ...]
    groups: int
    epsilon: float
    scale: bool = True
    shift: bool = True

    @property
    def channels(self) -> int:
        """Of one group."""
        return self.shape[1] // self.groups

    @property
    def pixels(self) -> int:
        """Of one channel."""
        return math.prod(self.shape[2:])


@dataclass(frozen=True)
class Taps:
    """A linear map along an axis: y[i] is the sum of weights[k][i] * x[places[k][i]] over k.

    weights: None for ones.
    """

    places: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...] | None, ...]


@dataclass(frozen=True)
class Resample:
    """Images (..., height, width) of another size: a linear map along columns, then one along rows.

    down: from a row of the result to rows of x; across: the same of columns.
    """

    shape: tuple[int, ...]
    down: Taps
    across: Taps

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the result."""
        return (*self.shape[:-2], len(self.down.places[0]), len(self.across.places[0]))
