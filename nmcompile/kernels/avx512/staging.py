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

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load, splat, store
from nmcompile.kernels.spec import Conv2d

MAX_SHUFFLED = 8  # column strides up to which a row is gathered by shuffles of whole vectors
WRITTEN_OUT = 32  # vectors of a row up to which there is no loop over them


@dataclass(frozen=True)
class StagedLayout:
    """Where panel rows start in the staged copy, in floats."""

    conv: Conv2d
    phases: tuple[int, ...]  # row phases that some kernel row reads
    rows: int  # output rows that the copy serves

    @classmethod
    def of(cls, conv: Conv2d, rows: int | None = None) -> StagedLayout:
        """The layout for `rows` output rows of one convolution, by default for all."""
        phases = {kh * conv.dilation[0] % conv.stride[0] for kh in range(conv.kernel[0])}
        return cls(conv, tuple(sorted(phases)), conv.out_height if rows is None else rows)

    def rows_of(self, phase: int) -> int:
        """Rows of a phase that are read."""
        shifts = [kh * self.conv.dilation[0] for kh in range(self.conv.kernel[0])]
        stride = self.conv.stride[0]
        return max(s // stride for s in shifts if s % stride == phase) + self.rows

    @property
    def plane_rows(self) -> int:
        """Rows of one (channel, kernel column, phase) plane."""
        return max(self.rows_of(phase) for phase in self.phases)

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

    def offset_of(self, kh: Expr, kw: Expr) -> Expr:
        """As `row_offset`, of a row and column that are computed, if dilation or stride is 1."""
        shift, stride = kh * self.conv.dilation[0], self.conv.stride[0]
        # Then no phase is left out, but for those behind the last row.
        plane = kw * len(self.phases) + shift % stride
        return plane * self.plane + shift // stride * self.conv.out_width


def copy_row(
    source: Buffer, start: Expr, stride: int, target: Buffer, at: Expr, count: int
) -> None:
    """Copy `count` floats that lie `stride` apart to consecutive ones."""
    if stride > MAX_SHUFFLED:
        # Only patch embeddings have such strides, and they read every input once.
        with T.serial(0, count) as i:
            T.buffer_store(target, source[start + i * stride], [at + i])
        return

    def copy(first: Expr, active: int) -> None:
        begin = start + first * stride
        store(target, at + first, _load_strided(source, begin, stride, active), active)

    _by_vectors(count, copy)


def _by_vectors(count: int, do: Callable[[Expr, int], None]) -> None:
    """Emit `do(first, active)` for each vector of a row: in a loop if it is long."""
    full, rest = divmod(count, LANES)
    if full > WRITTEN_OUT:
        with T.serial(0, full) as v:
            do(T.bind(v * LANES), LANES)
    else:
        for v in range(full):
            do(v * LANES, LANES)
    if rest:
        do(full * LANES, rest)


def _load_strided(buffer: Buffer, start: Expr, stride: int, active: int) -> Expr:
    """Floats start, start + stride, ...; lanes from `active` on are never read."""
    if stride == 1:
        return load(buffer, start, active)
    span = (active - 1) * stride + 1
    vectors = [
        T.bind(load(buffer, start + at, min(LANES, span - at))) for at in range(0, span, LANES)
    ]
    return T.Shuffle(vectors, [lane * stride if lane < active else 0 for lane in range(LANES)])


def fill_row(target: Buffer, at: Expr, count: int, value: float) -> None:
    """Set `count` consecutive floats."""
    _by_vectors(count, lambda first, active: store(target, at + first, splat(value), active))


def valid_columns(conv: Conv2d, kw: int) -> tuple[int, int]:
    """Output columns [low, high) whose input column under kernel column `kw` exists."""
    offset = kw * conv.dilation[1] - conv.padding[1]
    stride = conv.stride[1]
    low = max(0, -(offset // stride))
    high = min(conv.out_width, (conv.in_width - 1 - offset) // stride + 1)
    return min(low, conv.out_width), max(min(low, conv.out_width), high)


def stage(conv: Conv2d, layout: StagedLayout, x: Buffer, staged: Buffer) -> None:
    """Emit the copy of all images, in parallel over (image, channel)."""
    with T.parallel(0, conv.batch * conv.in_channels) as nc:
        stage_channel(conv, layout, x, nc, T.int32(0), staged, nc * layout.channel)


def stage_channel(
    conv: Conv2d,
    layout: StagedLayout,
    x: Buffer,
    channel: Expr,
    first_row: Expr,
    staged: Buffer,
    at: Expr,
) -> None:
    """Emit the copy of one channel to `staged` from `at` on.

    Args:
        conv: the geometry.
        layout: of the copy.
        x: the flat input.
        channel: number of the channel over all images.
        first_row: output row at which the copy begins.
        staged: the flat copy.
        at: where in it the channel goes.
    """
    top = conv.padding[0]
    for kw in range(conv.kernel[1]):
        low, high = valid_columns(conv, kw)
        column = low * conv.stride[1] + kw * conv.dilation[1] - conv.padding[1]
        for index, phase in enumerate(layout.phases):
            plane = at + (kw * len(layout.phases) + index) * layout.plane
            with T.serial(0, layout.rows_of(phase)) as j:
                row = T.bind((first_row + j) * conv.stride[0] + (phase - top))
                target = T.bind(plane + j * conv.out_width)
                with T.If(tirx.all(row >= 0, row < conv.in_height)):
                    with T.Then():
                        fill_row(staged, target, low, 0.0)
                        source = (channel * conv.in_height + row) * conv.in_width + column
                        copy_row(x, source, conv.stride[1], staged, target + low, high - low)
                        fill_row(staged, target + high, conv.out_width - high, 0.0)
                    with T.Else():
                        fill_row(staged, target, conv.out_width, 0.0)
