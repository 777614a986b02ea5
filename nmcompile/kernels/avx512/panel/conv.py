"""Sparse and dense convolution over packed panels: the main kernel family.

Vectors run over output pixels and weights are broadcast scalars, so sparsity along channels is
only a list of which panel rows to read. For every tile of output pixels the rows of a block of
input channels (im2col) are copied into a small contiguous panel, then all output channels are
computed from it. Lists that several output channels share are bound by FMA, lists of single
channels by L1 loads; `inner_loops` has both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    return PanelEmitter(conv, epilogue, config, sizes).emit(name)


class Source(Protocol):
    """What fills panels."""

    def fill(
        self, panel: Buffer, shape: Panel, image: Expr, channel: Expr, count: Expr, first: Expr
    ) -> None:
        """Copy `count` input channels from `channel` on, for pixels from `first` on."""


@dataclass(frozen=True)
class Tile:
    """Some output pixels of an image, and the output channels of one chunk of a group.

    first: the first pixel. shape: of the panel under them.
    """

    image: Expr
    group: Expr
    chunk: Expr
    first: Expr
    shape: Panel


@dataclass(frozen=True)
class Step:
    """The output channels that one step of the list loop accumulates, in one block of inputs.

    block: of input channels. index: of the list within its chunk; part: of its outputs.
    channels: of each output within its group.
    channel_at: of an output whose number is computed, where lists are of scattered channels.
    rows: of each output among those that rest between blocks.
    """

    block: Expr
    index: Expr
    part: Expr
    channels: Sequence[Expr]
    channel_at: Callable[[Expr], Expr] | None
    rows: Sequence[Expr]


class PanelEmitter:
    """State of one function while it is emitted."""

    def __init__(
        self, conv: Conv2d, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
    ) -> None:
        self.conv, self.epilogue, self.config, self.sizes = conv, epilogue, config, sizes
        self.blocks = blocks_of(conv, config)
        self.lists = lists_of(conv, config)
        self.padded_out = self.lists * config.lane_outputs

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of x and out."""
        return self.conv.shapes

    def emit(self, name: str) -> Any:
        """The function."""
        conv, sizes = self.conv, self.sizes
        x_shape, out_shape = self.shapes()
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", x_shape)
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
            self.weights = Weights(conv, self.config, values, indices, starts)
            self.read(func.flat(x))
            self._tiles()
        return func.result()

    def read(self, x: Buffer) -> None:
        """Take the flat input."""
        self.source: Source = PanelSource(self.conv, x, self.config.taps_first)

    def _tiles(self) -> None:
        """Parallel over (image, group, chunk, tile); the image's last tile has its own body."""
        conv, config = self.conv, self.config
        shapes = work_order(tile_shapes(conv.out_pixels, config.tile, extras=self.extras))
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
                self._tile(Tile(image, group, chunk, first, body))
                return
            with T.If(tile > 0):
                with T.Then():
                    self._tile(Tile(image, group, chunk, first, body))
                with T.Else():
                    self._tile(Tile(image, group, chunk, first, last))

    def _tile(self, tile: Tile) -> None:
        conv, config, shape = self.conv, self.config, tile.shape
        panel_size = self.panel_rows * conv.taps * shape.stride
        panel = T.alloc_buffer((panel_size,), align=64)
        lists = self.lists // config.chunks
        resting = self.resting_rows()
        partial = T.alloc_buffer((resting * shape.stride,), align=64) if resting else None
        with T.serial(0, self.blocks) as block:
            channel = T.bind(tile.group * conv.group_in + block * config.block_channels)
            count: Expr = config.block_channels
            if conv.group_in % config.block_channels:
                count = T.bind(T.min(count, conv.group_in - block * config.block_channels))
            self.source.fill(panel, shape, tile.image, channel, count, tile.first)
            with T.serial(0, lists) as index:
                with T.serial(0, config.lane_outputs // config.outputs) as part:
                    sums = Accumulators(config.outputs, shape)
                    place = T.bind(tile.chunk * lists + index)
                    which = self._which(tile.group, block, place, count)
                    channels = self._channels(tile.group, place, which, part)
                    scattered = self._scattered(place, part)
                    rows = self.rows_of(tile, index, part, channels)
                    step = Step(block, index, part, channels, scattered, rows)
                    target = self.aim(tile, step)
                    biases = [tile.group * self.padded_out + channel for channel in channels]
                    if scattered is not None:  # biases lie as the weights do
                        biases = [self._first(place, part) + j for j in range(config.outputs)]
                    self._begin(sums, partial, block, biases, rows)
                    multiply(self.weights, sums, panel, which, part, count)
                    self.end(sums, partial, target, tile, step)
                self.end_list(partial, tile, block, index)
            self.end_block(partial, tile, block)

    @property
    def extras(self) -> bool:
        """Whether single pixels may be kept beside vectors."""
        return not self.config.own_lists

    @property
    def panel_rows(self) -> int:
        """Input channels that the panel has room for."""
        return self.config.block_channels

    def resting_rows(self) -> int:
        """How many outputs' sums rest between blocks."""
        if self.blocks == 1:
            return 0
        # Lists of single channels are in another order in every block: sums rest by channel.
        lists = self.lists if self.config.lists == "private" else self.lists // self.config.chunks
        return lists * self.config.lane_outputs

    def rows_of(
        self, tile: Tile, index: Expr, part: Expr, channels: Sequence[Expr]
    ) -> Sequence[Expr]:
        """Where among the resting sums those of the outputs of a step are."""
        if self.config.lists == "private":
            return channels
        row = T.bind(index * self.config.lane_outputs + part * self.config.outputs)
        return [row + j for j in range(self.config.outputs)]

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

    def in_last_block(self, block: Expr, emit: Callable[[], None]) -> None:
        """Emit what is to be done once all input channels have been multiplied."""
        if self.blocks == 1:
            emit()
            return
        with T.If(block == self.blocks - 1):
            with T.Then():
                emit()

    def aim(self, tile: Tile, step: Step) -> Destination | None:
        """Where the sums of one step go.

        Asks for the lines that they will touch while the products are computed.
        """
        conv = self.conv
        plane = T.bind(tile.image * conv.out_channels + tile.group * conv.group_out)
        target = Destination(
            self.out,
            self.residual,
            self.epilogue.activation,
            planes=[T.bind(plane + channel) for channel in step.channels],
            channels=step.channels,
            limit=None if self.padded_out == conv.group_out else conv.group_out,
            channel_at=step.channel_at,
            consecutive=self.config.lists != "private" and step.channel_at is None,
            first=tile.first,
            pixels=conv.out_pixels,
        )

        def lines() -> None:
            for j in range(self.config.outputs):
                where = target.start(j)
                if target.residual is not None and not self.epilogue.in_place:
                    prefetch(target.residual, where, tile.shape.pixels)
                prefetch(target.out, where, tile.shape.pixels, write=True)

        self.in_last_block(step.block, lines)
        return target

    def _begin(
        self,
        sums: Accumulators,
        partial: Buffer | None,
        block: Expr,
        channels: list[Expr],
        rows: Sequence[Expr],
    ) -> None:
        if self.blocks == 1:
            sums.start(self.bias, channels)
            return
        with T.If(block == 0):
            with T.Then():
                sums.start(self.bias, channels)
            with T.Else():
                sums.restore(partial, rows)

    def end(
        self,
        sums: Accumulators,
        partial: Buffer | None,
        target: Destination | None,
        tile: Tile,
        step: Step,
    ) -> None:
        """Put the sums of one step away: let them rest, or write them."""
        assert target is not None
        if partial is None:
            target.write(sums, tile.shape)
            return
        with T.If(step.block == self.blocks - 1):
            with T.Then():
                target.write(sums, tile.shape)
            with T.Else():
                sums.save(partial, step.rows)

    def end_list(self, partial: Buffer | None, tile: Tile, block: Expr, index: Expr) -> None:
        """Emit what is to be done behind each list."""

    def end_block(self, partial: Buffer | None, tile: Tile, block: Expr) -> None:
        """Emit what is to be done behind all lists of a block."""
