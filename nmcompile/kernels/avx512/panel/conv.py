"""Sparse and dense convolution over packed panels: the main kernel family.

Vectors run over output pixels and weights are broadcast scalars, so sparsity along channels is
only a list of which panel rows to read. For every tile of output pixels the rows of a block of
input channels (im2col) are copied into a small contiguous panel, then all output channels are
computed from it. Lists that several output channels share are bound by FMA, lists of single
channels by L1 loads; `inner_loops` has both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, prefetch
from nmcompile.kernels.avx512.panel.accumulators import Accumulators, Destination
from nmcompile.kernels.avx512.panel.config import (
    PackedSizes,
    Panel,
    PanelConfig,
    blocks_of,
    lists_of,
    tile_shapes,
    work_order,
)
from nmcompile.kernels.avx512.panel.im2col import PanelSource
from nmcompile.kernels.avx512.panel.inner_loops import Weights, multiply
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d, Epilogue


def emit_panel_conv(
    name: str, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
) -> Any:
    """The TIR function (x, values, [indices, starts], [order], [bias], [residual], out)."""
    return _Emitter(conv, epilogue, config, sizes).emit(name)


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
    ) -> None:
        self.conv, self.epilogue, self.config, self.sizes = conv, epilogue, config, sizes
        self.blocks = blocks_of(conv, config)
        self.lists = lists_of(conv, config)
        self.padded_out = self.lists * config.lane_outputs

    def emit(self, name: str) -> Any:
        conv, sizes = self.conv, self.sizes
        out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
            values = func.tensor("values", (sizes.values,))
            indices = starts = self.bias = None
            if sizes.indices:
                dtype = "int64" if self.config.own_lists else "uint16"
                indices = func.tensor("indices", (sizes.indices,), dtype)
            if sizes.starts:
                starts = func.tensor("starts", (sizes.starts,), "int32")
            self.order: Buffer | None = None
            if sizes.order:
                self.order = func.tensor("order", (sizes.order,), "int32")
            if self.epilogue.bias:
                self.bias = func.tensor("bias", (conv.groups * self.padded_out,))
            self.residual, self.out = func.output(out_shape, self.epilogue)
            x = func.flat(x)
            self.weights = Weights(conv, self.config, values, indices, starts)
            self.source = PanelSource(conv, x, self.config.taps_first)
            self._tiles()
        return func.result()

    def _tiles(self) -> None:
        """Parallel over (image, group, chunk, tile); the image's last tile has its own body."""
        conv, config = self.conv, self.config
        shapes = work_order(tile_shapes(conv.out_pixels, config.tile, extras=not config.own_lists))
        last, body = shapes[0], shapes[-1]
        items = conv.batch * conv.groups * config.chunks * len(shapes)
        with T.parallel(0, items) as item:
            tile = T.bind(item % len(shapes))
            outer = T.bind(item // len(shapes))
            chunk = T.bind(outer % config.chunks)
            group = T.bind(outer // config.chunks % conv.groups)
            image = T.bind(outer // (config.chunks * conv.groups))
            place = (tile + (len(shapes) - 1)) % len(shapes)
            first = T.bind(place * (config.tile * LANES))
            if last == body:
                self._tile(image, group, chunk, first, body)
                return
            with T.If(tile > 0):
                with T.Then():
                    self._tile(image, group, chunk, first, body)
                with T.Else():
                    self._tile(image, group, chunk, first, last)

    def _tile(self, image: Expr, group: Expr, chunk: Expr, first: Expr, shape: Panel) -> None:
        conv, config = self.conv, self.config
        panel = T.alloc_buffer((config.block_channels * conv.taps * shape.stride,), align=64)
        lists = self.lists // config.chunks
        partial = None
        if self.blocks > 1:
            # Lists of single channels are in another order in every block: sums rest by channel.
            resting = self.lists if config.lists == "private" else lists
            partial = T.alloc_buffer((resting * config.lane_outputs * shape.stride,), align=64)
        with T.serial(0, self.blocks) as block:
            channel = T.bind(group * conv.group_in + block * config.block_channels)
            count: Expr = config.block_channels
            if conv.group_in % config.block_channels:
                count = T.bind(T.min(count, conv.group_in - block * config.block_channels))
            self.source.fill(panel, shape, image, channel, count, first)
            with T.serial(0, lists) as index:
                with T.serial(0, config.lane_outputs // config.outputs) as part:
                    sums = Accumulators(config.outputs, shape)
                    place = T.bind(chunk * lists + index)
                    which = self._which(group, block, place, count)
                    channels = self._channels(group, place, which, part)
                    rows = channels
                    if config.lists != "private":
                        row = T.bind(index * config.lane_outputs + part * config.outputs)
                        rows = [row + j for j in range(config.outputs)]
                    scattered = self._scattered(place, part)
                    target = self._destination(image, group, channels, first, scattered)
                    self._prefetch(target, shape, block)
                    biases = [group * self.padded_out + channel for channel in channels]
                    if scattered is not None:  # biases lie as the weights do
                        biases = [self._first(place, part) + j for j in range(config.outputs)]
                    self._begin(sums, partial, block, biases, rows)
                    multiply(self.weights, sums, panel, which, part, count)
                    self._end(sums, partial, block, target, shape, rows)

    def _channels(self, group: Expr, place: Expr, which: Expr, part: Expr) -> list[Expr]:
        """Output channels of one list step, counted within their group."""
        outputs = range(self.config.outputs)
        if self.config.lists == "private":
            assert self.order is not None
            return [T.bind(self.order[which * self.config.outputs + j]) for j in outputs]
        scattered = self._scattered(place, part)
        if scattered is not None:
            return [T.bind(scattered(j)) for j in outputs]
        if self.order is not None:
            place = T.bind(self.order[group * self.lists + place])
        first = self._first(place, part)
        return [first + j for j in outputs]

    def _first(self, place: Expr, part: Expr) -> Expr:
        """The first place of one list step among those of all output channels."""
        return T.bind(place * self.config.lane_outputs + part * self.config.outputs)

    def _scattered(self, place: Expr, part: Expr) -> Callable[[Expr], Expr] | None:
        """The output channel at each place of one list step, where they are scattered."""
        order = self.order
        if order is None or not self.sizes.scattered:
            return None
        first = self._first(place, part)
        return lambda j: order[first + j]

    def _which(self, group: Expr, block: Expr, index: Expr, count: Expr) -> Expr:
        """Number of a stored list over everything; for dense weights, the channels before it."""
        if self.config.lists != "dense":
            return T.bind((group * self.blocks + block) * self.lists + index)
        channel = group * self.conv.group_in + block * self.config.block_channels
        return T.bind(channel * self.lists + index * count)

    def _destination(
        self,
        image: Expr,
        group: Expr,
        channels: list[Expr],
        first: Expr,
        scattered: Callable[[Expr], Expr] | None,
    ) -> Destination:
        conv = self.conv
        plane = T.bind(image * conv.out_channels + group * conv.group_out)
        return Destination(
            self.out,
            self.residual,
            self.epilogue.activation,
            planes=[T.bind(plane + channel) for channel in channels],
            channels=channels,
            limit=None if self.padded_out == conv.group_out else conv.group_out,
            channel_at=scattered,
            consecutive=self.config.lists != "private" and scattered is None,
            first=first,
            pixels=conv.out_pixels,
        )

    def _prefetch(self, target: Destination, shape: Panel, block: Expr) -> None:
        """Ask for the lines that the epilogue will touch while the products are computed."""

        def lines() -> None:
            for j in range(self.config.outputs):
                where = target.start(j)
                if target.residual is not None and not self.epilogue.in_place:
                    prefetch(target.residual, where, shape.pixels)
                prefetch(target.out, where, shape.pixels, write=True)

        if self.blocks == 1:
            lines()
            return
        with T.If(block == self.blocks - 1):
            with T.Then():
                lines()

    def _begin(
        self,
        sums: Accumulators,
        partial: Buffer,
        block: Expr,
        channels: list[Expr],
        rows: list[Expr],
    ) -> None:
        if partial is None:
            sums.start(self.bias, channels)
            return
        with T.If(block == 0):
            with T.Then():
                sums.start(self.bias, channels)
            with T.Else():
                sums.restore(partial, rows)

    def _end(
        self,
        sums: Accumulators,
        partial: Buffer,
        block: Expr,
        target: Destination,
        shape: Panel,
        rows: list[Expr],
    ) -> None:
        if partial is None:
            target.write(sums, shape)
            return
        with T.If(block == self.blocks - 1):
            with T.Then():
                target.write(sums, shape)
            with T.Else():
                sums.save(partial, rows)
