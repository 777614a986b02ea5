"""Staging: the copies of an input image that turn any convolution into shifts of flat rows.

A panel row holds, for one (input channel, kernel row, kernel column), the input value under each of
a run of consecutive output pixels. For a 1x1 convolution of stride 1 that is the input itself. For
all others the image is first copied once per kernel column, zero-filled at the borders, at exactly
the output's width, its rows ordered by their phase (row modulo vertical stride):

    staged[n, c, kw, phase, j, ow] = x[n, c, j*sh + phase - top, ow*sw + kw*dw - left]

so that the row of (c, kh, kw) for output pixels p, p + 1, ... starts at one flat offset plus p,
whatever the stride, padding and dilation.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, splat, store
from nmcompile.kernels.spec import Conv2d


@dataclass(frozen=True)
class StagedLayout:
    """Where panel rows start in the staged copy, in floats."""

    conv: Conv2d
    phases: tuple[int, ...]  # row phases that some kernel row reads
    plane_rows: int  # rows of one (channel, kernel column, phase) plane

    @classmethod
    def of(cls, conv: Conv2d) -> StagedLayout:
        """The layout of one convolution."""
        shifts = [kh * conv.dilation[0] for kh in range(conv.kernel[0])]
        stride = conv.stride[0]
        phases = tuple(sorted({shift % stride for shift in shifts}))
        return cls(conv, phases, max(shift // stride for shift in shifts) + conv.out_height)

    @property
    def plane(self) -> int:
        """Floats of one (channel, kernel column, phase) plane."""
        return self.plane_rows * self.conv.out_width

    @property
    def channel(self) -> int:
        """Floats of all planes of one input channel."""
        return self.conv.kernel[1] * len(self.phases) * self.plane

    @property
    def size(self) -> int:
        """Floats of the whole copy; a tile may read this far past the last pixel it needs."""
        return self.conv.batch * self.conv.in_channels * self.channel + 64 * LANES

    def row_offset(self, kh: int, kw: int) -> int:
        """Offset of panel row (kh, kw), pixel 0, from the start of its channel."""
        shift = kh * self.conv.dilation[0]
        phase = self.phases.index(shift % self.conv.stride[0])
        plane = (kw * len(self.phases) + phase) * self.plane
        return plane + shift // self.conv.stride[0] * self.conv.out_width


def copy_row(
    source: Buffer, start: Expr, stride: int, target: Buffer, at: Expr, count: int
) -> None:
    """Copy `count` floats that lie `stride` apart to consecutive ones."""
    if stride > 2:
        # Only patch embeddings have such strides, and they read every input once.
        with T.serial(0, count) as i:
            T.buffer_store(target, source[start + i * stride], [at + i])
        return
    for first in range(0, count, LANES):
        active = min(LANES, count - first)
        begin = start + first * stride
        value = load(source, begin, active) if stride == 1 else _load_even(source, begin, active)
        store(target, at + first, value, active)


def _load_even(buffer: Buffer, start: Expr, active: int) -> Expr:
    """Floats start, start + 2, ...; lanes from `active` on are zero and not read."""
    low = T.bind(load(buffer, start, min(LANES, 2 * active - 1)))
    if active <= LANES // 2:
        high = splat(0.0)
    else:
        high = T.bind(load(buffer, start + LANES, 2 * active - 1 - LANES))
    return T.Shuffle([low, high], list(range(0, 2 * LANES, 2)))


def zero_row(target: Buffer, at: Expr, count: int) -> None:
    """Zero `count` consecutive floats."""
    for first in range(0, count, LANES):
        store(target, at + first, splat(0.0), min(LANES, count - first))


def valid_columns(conv: Conv2d, kw: int) -> tuple[int, int]:
    """Output columns [low, high) whose input column under kernel column `kw` exists."""
    offset = kw * conv.dilation[1] - conv.padding[1]
    stride = conv.stride[1]
    low = max(0, -(offset // stride))
    high = min(conv.out_width, (conv.in_width - 1 - offset) // stride + 1)
    return min(low, conv.out_width), max(min(low, conv.out_width), high)


def stage(conv: Conv2d, layout: StagedLayout, x: Buffer, staged: Buffer) -> None:
    """Emit the copy of all images, in parallel over (image, channel)."""
    top = conv.padding[0]
    with T.parallel(0, conv.batch * conv.in_channels) as nc:
        for kw in range(conv.kernel[1]):
            low, high = valid_columns(conv, kw)
            for index, phase in enumerate(layout.phases):
                plane = nc * layout.channel + (kw * len(layout.phases) + index) * layout.plane
                with T.serial(0, layout.plane_rows) as j:
                    row = T.bind(j * conv.stride[0] + (phase - top))
                    at = T.bind(plane + j * conv.out_width)
                    with T.If(tirx.all(row >= 0, row < conv.in_height)):
                        with T.Then():
                            zero_row(staged, at, low)
                            column = low * conv.stride[1] + kw * conv.dilation[1] - conv.padding[1]
                            source = (nc * conv.in_height + row) * conv.in_width + column
                            copy_row(x, source, conv.stride[1], staged, at + low, high - low)
                            zero_row(staged, at + high, conv.out_width - high)
                        with T.Else():
                            zero_row(staged, at, conv.out_width)
