"""Convolutions along three axes, and transposed ones, frame by frame.

A frame of the output is a convolution of two dimensions over as many frames of the input as the
kernel is deep. Without groups these lie side by side as channels, and one convolution reads them;
with groups each tap along the depth is a convolution of its own, and what they make is added up.

The frames of one phase of a transposed convolution are the same, of transposed convolutions of two
dimensions over the frames that taps of this phase read. Where all phases read the same frames, one
of these makes all of their frames, side by side as channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nmcompile.passes.graphs.interface import Array, ConvAttrs
from nmcompile.passes.graphs.planar import (
    Form,
    Pair,
    Phase,
    Piece,
    Planar,
    Shape,
    Tensor,
    Writer,
    convolution,
    fits,
    phases_of,
    transposed,
)

Volume = tuple[int, int, int, int, int]
Each = TypeVar("Each")


@dataclass(frozen=True)
class Reading:
    """Which frames of the input those of the output are made of.

    starts: the first frame under each tap, counted behind the padding.
    stride: frames from one output to the next.
    padding: frames in front and behind.
    count: frames of the output.
    """

    starts: tuple[int, ...]
    stride: int
    padding: Pair
    count: int

    def total(
        self,
        x: Tensor,
        given: Volume,
        made_by: Sequence[Each],
        make: Callable[[Tensor, Each], Tensor],
        into: Writer[Tensor],
    ) -> Tensor:
        """The sum of what is made of the frames under each tap.

        Args:
            x: (N, I, T, H, W).
            given: its shape.
            made_by: one for all taps, which reads their frames side by side as channels, or one
                for each.
            make: takes the frames, N * count * channels * H * W elements, and one of `made_by`.
            into: makes operators.
        """
        x = frames_first(x, given, into)
        if any(self.padding):
            x = into.pad(x, ((0, 0), self.padding, (0, 0), (0, 0)))
        span = (self.count - 1) * self.stride + 1
        whole = span == given[2] + sum(self.padding)
        read = [
            x if whole and self.stride == 1 else into.narrow(x, 1, start, span, self.stride)
            for start in self.starts
        ]
        if len(made_by) == 1 and len(read) > 1:
            read = [into.concat(read, 2)]
        made = [make(frames, each) for frames, each in zip(read, made_by, strict=True)]
        total = made[0]
        for other in made[1:]:
            total = into.add(total, other)
        return total


def frames_first(x: Tensor, shape: Volume, into: Writer[Tensor]) -> Tensor:
    """(N, I, T, H, W) as (N, T, I, H W), and the other way round.

    Rows and columns are one axis, so that elements are moved in long lines.
    """
    batch, channels, depth, height, width = shape
    x = into.reshape(x, (batch, channels, depth, height * width))
    return into.permute(x, (0, 2, 1, 3))


@dataclass(frozen=True, eq=False)
class Frames:
    """What a convolution along three axes is in those of two.

    given: (N, I, T, H, W) of its input.
    data: (N * count, channels, H, W) of what the convolutions read.
    pieces: one for all taps along the depth, or one for each.
    reading: the frames of the input.
    result: the shape of the output.
    """

    given: Volume
    data: Shape
    pieces: tuple[Piece, ...]
    reading: Reading
    result: Volume

    def write(self, x: Tensor, into: Writer[Tensor]) -> Tensor:
        """See `Form`."""
        batch, outputs, count, height, width = self.result

        def make(frames: Tensor, piece: Piece) -> Tensor:
            return into.conv(into.reshape(frames, self.data), piece)

        y = self.reading.total(x, self.given, self.pieces, make, into)
        y = frames_first(y, (batch, count, outputs, height, width), into)
        return into.reshape(y, self.result)


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
        tuple(pieces),
        Reading(tuple(tap * dilation[0] for tap in range(depth)), stride[0], padding[0], count),
        (batch, outputs, count, height, width),
    )


@dataclass(frozen=True, eq=False)
class Spread:
    """The frames of one phase along the depth, or of all of them.

    reading: the frames of the input.
    flats: transposed convolutions of two dimensions: one for all taps, or one for each; phases are
        innermost among the channels of what they make.
    """

    reading: Reading
    flats: tuple[Planar, ...]


@dataclass(frozen=True, eq=False)
class SpreadFrames:
    """What a transposed convolution along three axes is in those of two.

    given: (N, I, T, H, W) of its input.
    parts: one for all phases along the depth, or one for each.
    phases: how many these are.
    crop: frames that are left out in front.
    result: the shape of the output.
    """

    given: Volume
    parts: tuple[Spread, ...]
    phases: int
    crop: int
    result: Volume

    @property
    def data(self) -> Shape:
        """See `Form`."""
        return self.parts[0].flats[0].data

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """See `Form`."""
        return tuple(piece for part in self.parts for flat in part.flats for piece in flat.pieces)

    def write(self, x: Tensor, into: Writer[Tensor]) -> Tensor:
        """See `Form`."""
        batch, outputs, kept, height, width = self.result
        count = self.parts[0].reading.count
        split = (batch, count, outputs, self.phases // len(self.parts), height * width)

        def make(frames: Tensor, flat: Planar) -> Tensor:
            return flat.write(into.reshape(frames, flat.data), into)

        made = [
            into.reshape(part.reading.total(x, self.given, part.flats, make, into), split)
            for part in self.parts
        ]
        y = made[0] if len(made) == 1 else into.concat(made, 3)
        y, whole = into.permute(y, (0, 2, 1, 3, 4)), count * self.phases
        if whole != kept:
            y = into.reshape(y, (batch, outputs, whole, height * width))
            y = into.narrow(y, 2, self.crop, kept, 1)
        return into.reshape(y, self.result)


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
        None where it has no outputs, a phase has no tap, or it is malformed.
    """
    if not fits(shape, weight, bias, groups, weight.shape[1] * groups, weight.shape[0]):
        return None
    if min(*stride, *dilation, *(1 + size for size in extra)) < 1:
        return None
    batch, channels, depth, *image = shape
    taps, inputs = weight.shape[2], weight.shape[0]
    along = phases_of(depth, taps, stride[0], dilation[0], padding[0], extra[0])
    if along is None:
        return None

    def flat_of(
        chosen: Sequence[Phase], places: Sequence[int], bias: Array | None
    ) -> Planar | None:
        """What the taps at these places of the phases make of their frames side by side."""
        read = [
            np.stack([weight[:, :, phase.taps[place]] for phase in chosen], 2) for place in places
        ]
        stacked = np.concatenate(read).reshape(len(places) * inputs, -1, *weight.shape[3:])
        return transposed(
            (batch * along.count, len(places) * channels, *image), stacked, bias,
            stride[1:], padding[1:], dilation[1:], extra[1:], groups,
        )  # fmt: skip

    parts = []
    for chosen in [along.phases] if along.alike else [(phase,) for phase in along.phases]:
        first, count = chosen[0], len(chosen[0].taps)
        repeated = None if bias is None else np.repeat(bias, len(chosen))
        side_by_side = [range(count)] if groups == 1 else [[place] for place in range(count)]
        flats = [
            flat_of(chosen, places, None if places[0] else repeated) for places in side_by_side
        ]
        known = tuple(flat for flat in flats if flat is not None)
        if len(known) < len(flats):
            return None
        starts = tuple(place * first.step for place in range(count))
        parts.append(Spread(Reading(starts, 1, first.padding, along.count), known))
    height, width = parts[0].flats[0].result[2:]
    return SpreadFrames(
        (batch, channels, depth, image[0], image[1]), tuple(parts), len(along.phases), along.crop,
        (batch, weight.shape[1] * groups, along.size, height, width),
    )  # fmt: skip


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
