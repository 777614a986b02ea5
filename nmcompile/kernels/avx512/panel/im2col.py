"""Filling the panel: the input values under a tile of output pixels, one row per weight.

Four sources, from cheap to general:

1. a 1x1 convolution of stride 1 reads the input itself;
2. stride 1 and an output as wide as the input ("same" padding): every kernel position is the flat
   input at a constant shift, with lanes masked that lie beyond a border;
3. anything else reads the staged copy of the input (see `staging`);
   Windows of more than `MAX_WRITTEN_TAPS` are loops there, as they would be too much code;
4. but where staging itself would be that (patch embeddings, whose strides are as large as their
   windows), they are gathered one float at a time.
"""

from __future__ import annotations

from typing import Literal

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    lanes,
    load,
    masked_load,
    splat,
    store,
)
from nmcompile.kernels.avx512.panel.config import Panel
from nmcompile.kernels.avx512.staging import StagedLayout, stage
from nmcompile.kernels.spec import Conv2d

MAX_WRITTEN_TAPS = 49


def source_kind(conv: Conv2d) -> Literal["input", "shifted", "staged", "gathered"]:
    """Which of the four cases a convolution is."""
    if conv.is_pointwise:
        return "input"
    if conv.taps > MAX_WRITTEN_TAPS:
        copies = conv.kernel[1] * len(StagedLayout.of(conv).phases)
        regular = conv.dilation[0] == 1 or conv.stride[0] == 1
        return "staged" if regular and copies <= MAX_WRITTEN_TAPS else "gathered"
    if conv.stride == (1, 1) and conv.out_width == conv.in_width:
        return "shifted"
    return "staged"


class PanelSource:
    """Emits the copies from the input of one convolution into panels."""

    def __init__(self, conv: Conv2d, x: Buffer, taps_first: bool) -> None:
        """Take the flat input `x`; in case 3, emit the staging of all images.

        Panel rows are ordered (tap, channel) with `taps_first`, else (channel, tap).
        """
        self.conv, self._taps_first = conv, taps_first
        self._kind = source_kind(conv)
        self._layout = StagedLayout.of(conv) if self._kind == "staged" else None
        self._source = x
        if self._layout is not None:
            self._source = T.alloc_buffer((self._layout.size,), align=64)
            stage(conv, self._layout, x, self._source)

    def fill(
        self, panel: Buffer, shape: Panel, image: Expr, channel: Expr, count: Expr, first: Expr
    ) -> None:
        """Copy the rows of `count` input channels from `channel` on, for pixels from `first` on.

        The row of (c, kh, kw) becomes row (c - channel) * taps + tap with tap = kh * kernel_width +
        kw, or row tap * count + c - channel where taps come first.
        """
        conv = self.conv
        channel0 = T.bind(image * conv.in_channels + channel)
        if self._kind == "shifted":
            self._fill_shifted(panel, shape, channel0, count, first)
            return
        if self._kind == "gathered":
            self._fill_gathered(panel, shape, channel0, count, first)
            return
        size = conv.in_height * conv.in_width if self._layout is None else self._layout.channel
        if self._layout is not None and conv.taps > MAX_WRITTEN_TAPS:
            self._fill_looped(panel, shape, self._layout, channel0, count, first)
            return
        with T.serial(0, count) as c:
            source = T.bind((channel0 + c) * size + first)
            for kh in range(conv.kernel[0]):
                for kw in range(conv.kernel[1]):
                    target = T.bind(self._row(kh, kw, c, count) * shape.stride)
                    shift = 0 if self._layout is None else self._layout.row_offset(kh, kw)
                    for at in range(0, shape.pixels, LANES):
                        # The staged copy has slack behind it; the input must not be read past
                        # its end.
                        active = LANES if self._layout else min(LANES, shape.pixels - at)
                        value = load(self._source, source + (shift + at), active)
                        store(panel, target + at, value)

    def _fill_looped(
        self,
        panel: Buffer,
        shape: Panel,
        layout: StagedLayout,
        channel0: Expr,
        count: Expr,
        first: Expr,
    ) -> None:
        """Case 3 with loops over the window."""
        with T.serial(0, count) as c:
            source = T.bind((channel0 + c) * layout.channel + first)
            with T.serial(0, self.conv.kernel[0]) as kh:
                with T.serial(0, self.conv.kernel[1]) as kw:
                    target = T.bind(self._row(kh, kw, c, count) * shape.stride)
                    start = T.bind(source + layout.offset_of(kh, kw))
                    for at in range(0, shape.pixels, LANES):
                        store(panel, target + at, load(self._source, start + at))

    def _row(self, kh: Expr, kw: Expr, channel: Expr, count: Expr) -> Expr:
        tap = kh * self.conv.kernel[1] + kw
        return tap * count + channel if self._taps_first else channel * self.conv.taps + tap

    def _fill_shifted(
        self, panel: Buffer, shape: Panel, channel0: Expr, count: Expr, first: Expr
    ) -> None:
        """Case 2: kernel positions outside, so that a position's masks stay in registers."""
        conv = self.conv
        starts = range(0, shape.pixels, LANES)
        pixel = [T.bind(lanes(first + at)) for at in starts]
        row = [T.bind(tirx.floordiv(p, splat(T.int32(conv.out_width)))) for p in pixel]
        column = [
            T.bind(p - r * splat(T.int32(conv.out_width))) for p, r in zip(pixel, row, strict=True)
        ]
        plane = conv.in_height * conv.in_width
        for kh in range(conv.kernel[0]):
            down = kh * conv.dilation[0] - conv.padding[0]
            for kw in range(conv.kernel[1]):
                right = kw * conv.dilation[1] - conv.padding[1]
                masks = [
                    self._inside(r, c, down, right, min(LANES, shape.pixels - at))
                    for r, c, at in zip(row, column, starts, strict=True)
                ]
                shift = down * conv.in_width + right
                with T.serial(0, count) as channel:
                    source = T.bind((channel0 + channel) * plane + first + shift)
                    target = T.bind(self._row(kh, kw, channel, count) * shape.stride)
                    for at, mask in zip(starts, masks, strict=True):
                        value = masked_load(self._source, lanes(source + at), mask)
                        store(panel, target + at, value)

    def _fill_gathered(
        self, panel: Buffer, shape: Panel, channel0: Expr, count: Expr, first: Expr
    ) -> None:
        """Case 4: loops only."""
        conv = self.conv
        plane = conv.in_height * conv.in_width
        kernel_h, kernel_w = conv.kernel
        with T.serial(0, count) as channel:
            with T.serial(0, kernel_h) as kh:
                with T.serial(0, kernel_w) as kw:
                    target = T.bind(self._row(kh, kw, channel, count) * shape.stride)
                    with T.serial(0, shape.pixels) as i:
                        out_row = T.bind((first + i) // conv.out_width)
                        out_column = T.bind((first + i) % conv.out_width)
                        row = out_row * conv.stride[0] + kh * conv.dilation[0] - conv.padding[0]
                        column = (
                            out_column * conv.stride[1] + kw * conv.dilation[1] - conv.padding[1]
                        )
                        row, column = T.bind(row), T.bind(column)
                        inside = tirx.all(
                            row >= 0, row < conv.in_height, column >= 0, column < conv.in_width
                        )
                        at = (channel0 + channel) * plane + row * conv.in_width + column
                        value = T.if_then_else(inside, self._source[at], T.float32(0))
                        T.buffer_store(panel, value, [target + i])

    def _inside(self, row: Expr, column: Expr, down: int, right: int, active: int) -> Expr:
        """Lanes among the first `active` whose pixel, moved down and right, is in the image.

        All conditions are distances that must not be negative; one comparison of their minimum
        decides.
        """
        distances = [splat(T.int32(active - 1)) - lanes(0)] if active < LANES else []
        for at, move, size in (
            (row, down, self.conv.in_height),
            (column, right, self.conv.in_width),
        ):
            if move < 0:
                distances.append(at + splat(T.int32(move)))
            # Rows past the last output row are never active, so only a move can leave the image.
            if move > 0 or self.conv.out_height > self.conv.in_height:
                distances.append(splat(T.int32(size - 1 - move)) - at)
        nearest = distances[0] if distances else splat(T.int32(0))
        for distance in distances[1:]:
            nearest = T.min(nearest, distance)
        return nearest >= splat(T.int32(0))
