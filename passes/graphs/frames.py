"""Convolutions along three axes, and transposed ones, frame by frame.

A frame of the output is a convolution of two dimensions over as many frames of the input as the
kernel is deep. Without groups these lie side by side as channels, and one convolution reads them;
with groups each tap along the depth is a convolution of its own, and what they make is added up.

A transposed convolution makes as many frames of each one as its kernel is deep. Where these do not
overlap, they are channels of a transposed convolution of two dimensions, put one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nmcompile.passes.graphs.interface import Array, ConvAttrs
from nmcompile.passes.graphs.planar import (
    Form,
    Pair,
    Piece,
    Planar,
    Shape,
    Tensor,
    Writer,
    convolution,
    fits,
    transposed,
)

Volume = tuple[int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class Frames:
    """What a convolution along three axes is in those of two.

    given: (N, I, T, H, W) of its input.
    data: (N * count, channels, H, W) of what the convolutions read.
    pieces: one for all taps along the depth, or one for each.
    starts: the first frame under each tap, counted behind the padding.
    stride: frames from one output to the next.
    padding: frames in front and behind.
    count: frames of the output.
    result: its shape.
    """

    given: Volume
    data: Shape
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    stride: int
    padding: Pair
    count: int
    result: Volume

    def write(self, x: Tensor, into: Writer[Tensor]) -> Tensor:
        """See `Form`."""
        batch, _, depth, _, _ = self.given
        y = into.permute(x, (0, 2, 1, 3, 4))
        if any(self.padding):
            y = into.pad(y, ((0, 0), self.padding, (0, 0), (0, 0), (0, 0)))
        span = (self.count - 1) * self.stride + 1
        whole = span == depth + sum(self.padding)
        frames = [
            y if whole and self.stride == 1 else into.narrow(y, 1, start, span, self.stride)
            for start in self.starts
        ]
        if len(self.pieces) == 1 and len(frames) > 1:
            frames = [into.concat(frames, 2)]
        made = [
            into.conv(into.reshape(part, self.data), piece)
            for part, piece in zip(frames, self.pieces, strict=True)
        ]
        total = made[0]
        for other in made[1:]:
            total = into.add(total, other)
        _, outputs, height, width = self.pieces[0].made
        split = into.reshape(total, (batch, self.count, outputs, height, width))
        return into.permute(split, (0, 2, 1, 3, 4))


def frames(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    groups: int,
) -> Frames | None:
    """A convolution along three axes.

    Args:
        shape: (N, I, T, H, W) of its input.
        weight: (O, I / groups, d, h, w).
        bias: (O,), or None.
        stride: per axis, as all that follows.
        padding: in front and behind.
        dilation: in elements.
        groups: of channels.

    Returns:
        None where it has no outputs, or is malformed.
    """
    if not fits(shape, weight, bias, groups, weight.shape[0], weight.shape[1] * groups):
        return None
    if min(*stride, *dilation, *(1 + size for pair in padding for size in pair)) < 1:
        return None
    batch, channels, *extents = shape
    sizes = [
        (extent + sum(pair) - step * (kernel - 1) - 1) // move + 1
        for extent, pair, step, kernel, move in zip(
            extents, padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    if min(sizes) < 1:
        return None
    count, height, width = sizes
    outputs, inputs, depth = weight.shape[:3]
    _, (top, bottom), (left, right) = padding
    conv = ConvAttrs(
        (stride[1], stride[2]), (top, left, bottom, right), (dilation[1], dilation[2]), groups
    )
    made = (batch * count, outputs, height, width)
    if groups == 1:
        # Taps outermost: a pattern along the channels stays one.
        flat = np.moveaxis(weight, 2, 1).reshape(outputs, depth * inputs, *weight.shape[3:])
        pieces = [Piece(flat, bias, conv, made)]
    else:
        pieces = [
            Piece(weight[:, :, tap], None if tap else bias, conv, made) for tap in range(depth)
        ]
    side_by_side = depth if groups == 1 else 1
    return Frames(
        (batch, channels, extents[0], extents[1], extents[2]),
        (batch * count, channels * side_by_side, extents[1], extents[2]),
        tuple(pieces), tuple(tap * dilation[0] for tap in range(depth)), stride[0], padding[0],
        count, (batch, outputs, count, height, width),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SpreadFrames:
    """What a transposed convolution along three axes is in those of two.

    given: (N, I, T, H, W) of its input.
    flat: of the frames, (N * T, I, H, W), with the frames of each as channels.
    depth: how many these are.
    crop: frames that are left out in front.
    result: the shape of the output.
    """

    given: Volume
    flat: Planar
    depth: int
    crop: int
    result: Volume

    @property
    def data(self) -> Shape:
        """See `Form`."""
        return self.flat.data

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """See `Form`."""
        return self.flat.pieces

    def write(self, x: Tensor, into: Writer[Tensor]) -> Tensor:
        """See `Form`."""
        batch, _, frames, _, _ = self.given
        _, outputs, kept, height, width = self.result
        y = into.reshape(into.permute(x, (0, 2, 1, 3, 4)), self.data)
        y = self.flat.write(y, into)
        y = into.reshape(y, (batch, frames, outputs, self.depth, height, width))
        y = into.permute(y, (0, 2, 1, 3, 4, 5))
        made = frames * self.depth
        y = into.reshape(y, (batch, outputs, made, height, width))
        return y if made == kept else into.narrow(y, 2, self.crop, kept, 1)


def spread(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    extra: Sequence[int],
    groups: int,
) -> SpreadFrames | None:
    """A transposed convolution along three axes.

    Args:
        shape: (N, I, T, H, W) of its input.
        weight: (I, O / groups, d, h, w).
        bias: (O,), or None.
        stride: per axis, as all that follows.
        padding: what is cut off in front and behind.
        dilation: in elements of the output.
        extra: elements that are added behind.
        groups: of channels.

    Returns:
        None where frames of the output overlap or are missing, and as `transposed`.
    """
    if not fits(shape, weight, bias, groups, weight.shape[1] * groups, weight.shape[0]):
        return None
    batch, channels, depth, *image = shape
    inputs, outputs, taps = weight.shape[:3]
    cut = padding[0]
    kept = depth * taps - sum(cut)
    if stride[0] != taps or (dilation[0] != 1 and taps > 1) or extra[0] or min(*cut, kept - 1) < 0:
        return None
    flat = transposed(
        (batch * depth, channels, *image),
        weight.reshape(inputs, outputs * taps, *weight.shape[3:]),
        None if bias is None else np.repeat(bias, taps),
        stride[1:], padding[1:], dilation[1:], extra[1:], groups,
    )  # fmt: skip
    if flat is None:
        return None
    given = (batch, channels, depth, image[0], image[1])
    height, width = flat.result[2:]
    result = (batch, outputs * groups, kept, height, width)
    return SpreadFrames(given, flat, taps, cut[0], result)


def plain_form(
    shape: Sequence[int],
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[Pair],
    dilation: Sequence[int],
    groups: int,
    extra: Sequence[int] | None,
) -> Form | None:
    """What a convolution along any number of axes is in plain ones of two dimensions.

    Arguments as `frames` and `spread` have them; `extra` is None but for transposed ones.
    """
    volumes = weight.ndim == 5
    if extra is not None:
        make = spread if volumes else transposed
        return make(shape, weight, bias, stride, padding, dilation, extra, groups)
    if volumes:
        return frames(shape, weight, bias, stride, padding, dilation, groups)
    return convolution(shape, weight, bias, stride[0], padding[0], dilation[0], groups)
