"""Convolutions along one axis, and transposed ones, as plain convolutions of two dimensions.

A transposed convolution of stride s writes y[x s + k d - p] += x w[k]. The outputs y = q s + r - c
of one phase r are a plain convolution at stride 1: x = q + t with t = (r - c + p - k d) / s for the
taps k where that is whole. Where all phases have the same t, as with a kernel that is a multiple of
the stride, one convolution computes them all, with s times the channels; else each has its own.
Either way there are no more products than the model has, and no tap of zero that would make NaN of
an infinity. c is cropped, and chosen so that phases agree if they can.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol, TypeVar

import numpy as np

from nmcompile.passes.graphs.interface import Array, ConvAttrs, Layer

Pair = tuple[int, int]
Shape = tuple[int, int, int, int]
Tensor = TypeVar("Tensor")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Piece:
    """One convolution.

    weight: (O, I / groups, kh, kw); of all phases, if it computes them all, one after the other
        within each group.
    bias: (O,), or None.
    conv: its geometry.
    made: (N, O, H, W) of what it makes.
    """

    weight: Array
    bias: Array | None
    conv: ConvAttrs
    made: Shape

    @property
    def channels(self) -> int:
        """What it reads."""
        return int(self.weight.shape[1]) * self.conv.groups


@dataclass(frozen=True, eq=False)
class Planar:
    """y = crop(interleave(concat(piece(x.reshape(data)), ...))).reshape(result).

    data: (N, I, H, W) of what the convolutions read.
    pieces: one for all phases, or one for each.
    phases: vertical and horizontal; one output of each makes a block of so many rows and columns.
    crop: rows and columns that are left out in front.
    size: rows and columns that are kept behind these.
    result: the shape of the operator's output.
    """

    data: Shape
    pieces: tuple[Piece, ...]
    phases: Pair
    crop: Pair
    size: Pair
    result: tuple[int, ...]

    def write(self, x: Tensor, into: "Writer[Tensor]") -> Tensor:
        """See `Form`."""
        rank = len(self.result)
        data = x if rank == 4 else into.reshape(x, self.data)
        parts = [into.conv(data, piece) for piece in self.pieces]
        y = parts[0] if len(parts) == 1 else into.concat(parts, 1)
        batch, channels, height, width = self.pieces[0].made
        tall, wide = self.phases
        if tall * wide > 1:
            # Behind concat phases are outermost, in one convolution its groups are.
            groups = self.pieces[0].conv.groups if len(parts) == 1 else 1
            outputs = channels * len(parts) // (tall * wide)
            split = (batch, groups, tall, wide, outputs // groups, height, width)
            y = into.permute(into.reshape(y, split), (0, 1, 4, 5, 2, 6, 3))
            height, width = height * tall, width * wide
            y = into.reshape(y, (batch, outputs, height, width))
        ends = zip(self.crop, self.size, (height, width), strict=True)
        for axis, (start, size, whole) in enumerate(ends, 2):
            if size != whole:
                y = into.narrow(y, axis, start, size, 1)
        return y if rank == 4 else into.reshape(y, self.result)


class Form(Protocol):
    """What an operator is in plain convolutions of two dimensions.

    data: (N, I, H, W) of what the first convolution reads; others may read other channels.
    pieces: these.
    """

    @property
    def data(self) -> Shape:
        """See the class."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """See the class."""

    def write(self, x: Tensor, into: "Writer[Tensor]") -> Tensor:
        """Make the operators that it stands for behind `x`; returns what they make."""


def layers_of(form: Form, name: str) -> tuple[Layer, ...]:
    """The convolutions of a form as layers."""
    return tuple(
        Layer(
            name,
            "conv2d",
            piece.weight,
            piece.bias,
            piece.conv.stride,
            piece.conv.padding,
            piece.conv.dilation,
            piece.conv.groups,
            (form.data[0], piece.channels, *form.data[2:]),
            piece.made,
            math.prod(piece.made) * math.prod(piece.weight.shape[1:]),
        )
        for piece in form.pieces
    )


class Writer(Protocol[Tensor]):
    """What makes new operators in a graph of some kind."""

    def conv(self, x: Tensor, piece: Piece) -> Tensor:
        """One convolution."""

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of two of one shape."""

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """One behind the other along an axis."""

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same elements in another shape."""

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Axis i of the result is axis order[i]."""

    def narrow(self, x: Tensor, axis: int, start: int, length: int, step: int) -> Tensor:
        """Every so many slices of `length` along an axis."""

    def pad(self, x: Tensor, ends: Sequence[Pair]) -> Tensor:
        """Zeros in front of each axis and behind it."""


def operands(
    turned: bool,
    data: Value,
    weight: Value,
    bias: Value | None,
    constant: Callable[[Value], Array | None],
    shape: Callable[[Value], tuple[int, ...] | None],
) -> tuple[tuple[int, ...], Array, Array | None] | None:
    """The shape of the input, the weight and the bias of an operator that has another form.

    Args:
        turned: whether it is a transposed convolution.
        data: its input.
        weight: its weight.
        bias: its bias, or None.
        constant: the contents of a value.
        shape: that of a value.

    Returns:
        None where one of them is not known, and for plain convolutions of two dimensions.
    """
    extents, kernel = shape(data), constant(weight)
    added = None if bias is None else constant(bias)
    if extents is None or kernel is None or (bias is not None and added is None):
        return None
    if kernel.ndim not in ((3, 4, 5) if turned else (3, 5)) or len(extents) != kernel.ndim:
        return None
    return extents, kernel, added


def convolution(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    stride: int,
    padding: Pair,
    dilation: int,
    groups: int,
) -> Planar | None:
    """A convolution along one axis.

    Args:
        shape: (N, I, L) of its input.
        weight: (O, I / groups, k).
        bias: (O,), or None.
        stride: in elements.
        padding: in front and behind.
        dilation: in elements.
        groups: of channels.

    Returns:
        None where it has no outputs, or is malformed.
    """
    if not fits(shape, weight, bias, groups, weight.shape[0], weight.shape[1] * groups):
        return None
    if min(stride, dilation, 1 + min(padding)) < 1:
        return None
    batch, channels, length = shape
    made = (length + sum(padding) - dilation * (weight.shape[2] - 1) - 1) // stride + 1
    if made < 1:
        return None
    outputs = weight.shape[0]
    conv = ConvAttrs((1, stride), (0, padding[0], 0, padding[1]), (1, dilation), groups)
    piece = Piece(weight[:, :, None], bias, conv, (batch, outputs, 1, made))
    result = (batch, outputs, made)
    return Planar((batch, channels, 1, length), (piece,), (1, 1), (0, 0), (1, made), result)


def transposed(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    extra: Sequence[int],
    groups: int,
) -> Planar | None:
    """A transposed convolution along one axis or two.

    Args:
        shape: (N, I, H, W) or (N, I, W) of its input.
        weight: (I, O / groups, kh, kw) or (I, O / groups, kw).
        bias: (O,), or None.
        stride: per axis, as all that follows.
        padding: what is cut off in front and behind.
        dilation: in elements of the output.
        extra: elements that are added behind.
        groups: of channels.

    Returns:
        None where it has no outputs, a phase has no tap, or it is malformed.
    """
    if not fits(shape, weight, bias, groups, weight.shape[1] * groups, weight.shape[0]):
        return None
    if min(*stride, *dilation, *(1 + size for size in extra)) < 1:
        return None
    batch, channels, *image = shape
    kernel = weight.shape[2:]
    found = [
        phases_of(*entry)
        for entry in zip(image, kernel, stride, dilation, padding, extra, strict=True)
    ]
    known = [axis for axis in found if axis is not None]
    if len(known) < len(found):
        return None
    result = (batch, weight.shape[1] * groups, *(axis.size for axis in known))
    if len(image) == 1:
        image, weight, known = [1, *image], weight[:, :, None], [_FLAT, *known]
    tall, wide = known
    split = weight.reshape(groups, channels // groups, *weight.shape[1:])
    pairs = list(product(tall.phases, wide.phases))
    together = [pairs] if tall.alike and wide.alike else [[pair] for pair in pairs]
    pieces = []
    for chosen in together:
        # Each (groups, O / groups, I / groups, kh, kw), then side by side as (groups, phases, ...).
        read = [split[:, :, :, down.taps][..., right.taps].swapaxes(1, 2) for down, right in chosen]
        stacked = np.stack(read, 1)
        made = (batch, result[1] * len(chosen), tall.count, wide.count)
        repeated = bias
        if bias is not None:
            lined = bias.reshape(groups, 1, -1)
            repeated = np.broadcast_to(lined, stacked.shape[:3]).reshape(-1)
        down, right = chosen[0]
        (top, bottom), (first, last) = down.padding, right.padding
        conv = ConvAttrs((1, 1), (top, first, bottom, last), (down.step, right.step), groups)
        pieces.append(Piece(stacked.reshape(made[1], *stacked.shape[3:]), repeated, conv, made))
    return Planar(
        (batch, channels, image[0], image[1]), tuple(pieces),
        (len(tall.phases), len(wide.phases)), (tall.crop, wide.crop), (tall.size, wide.size),
        result,
    )  # fmt: skip


def fits(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    groups: int,
    outputs: int,
    channels: int,
) -> bool:
    """Whether a kernel can make sense of the weight, and the input goes with it."""
    arrays = [weight] if bias is None else [weight, bias]
    return (
        len(shape) == weight.ndim
        and min(*shape, *weight.shape, groups) > 0
        and shape[1] == channels
        and channels % groups == outputs % groups == 0
        and (bias is None or bias.shape == (outputs,))
        and all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays)
    )


@dataclass(frozen=True)
class Phase:
    """The outputs of one phase along one axis, as a plain convolution.

    taps: of the kernel, in the order in which the window has them.
    step: from what one of them reads to what the next one does.
    padding: of what is read.
    """

    taps: tuple[int, ...]
    step: int
    padding: Pair


@dataclass(frozen=True)
class Axis:
    """One axis of a transposed convolution.

    count: outputs of each phase. crop, size: of all of them together, as in `Planar`.
    """

    phases: tuple[Phase, ...]
    count: int
    crop: int
    size: int

    @property
    def alike(self) -> bool:
        """Whether all phases read the same."""
        return len({(len(each.taps), each.step, each.padding) for each in self.phases}) == 1


_FLAT = Axis((Phase((0,), 1, (0, 0)),), 1, 0, 1)
"""The axis that is not there."""


def phases_of(
    length: int, kernel: int, stride: int, dilation: int, padding: Pair, extra: int
) -> Axis | None:
    """The phases of an axis; None where there are no outputs, or a phase has no tap.

    Args:
        length: of what is read.
        kernel: taps.
        stride: in elements, as all that follows.
        dilation: of the output.
        padding: what is cut off in front and behind.
        extra: what is added behind.
    """
    size = stride * (length - 1) + dilation * (kernel - 1) + 1 + extra - sum(padding)
    moves = [padding[0] - k * dilation for k in range(kernel)]
    if size < 1 or len({move % stride for move in moves}) < stride:
        return None
    found = [_cropped(length, stride, moves, size, crop) for crop in range(stride)]
    return min(found, key=lambda axis: (not axis.alike, axis.count, axis.crop))


def _cropped(length: int, stride: int, moves: Sequence[int], size: int, crop: int) -> Axis:
    """The phases of an axis whose output is cropped in front, by so much or a little more."""
    reads: list[list[Pair]] = [[] for _ in range(stride)]
    for tap, move in enumerate(moves):
        # Output r - crop of phase r reads element (r - crop + move) / stride, where that is whole.
        phase = (crop - move) % stride
        reads[phase].append(((phase - crop + move) // stride, tap))
    least = max(min(of_phase)[0] for of_phase in reads)
    if least > 0:  # padding in front would be negative
        return _cropped(length, stride, moves, size, crop + stride * least)
    last = [max(of_phase)[0] for of_phase in reads]
    # Nor can it be behind: what is too much is cropped there.
    count = max(-(-(size + crop) // stride), length - min(last))
    phases = []
    for of_phase, most in zip(reads, last, strict=True):
        of_phase.sort()
        begin = of_phase[0][0]
        step = of_phase[1][0] - begin if len(of_phase) > 1 else 1
        behind = count - 1 + most - (length - 1)
        phases.append(Phase(tuple(tap for _, tap in of_phase), step, (-begin, behind)))
    return Axis(tuple(phases), count, crop, size)
