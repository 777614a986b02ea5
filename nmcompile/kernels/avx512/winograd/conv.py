"""Winograd convolution, dense or 1xN sparse: fewer multiplications for 3x3 and larger windows.

A 1xN pattern keeps or drops whole windows, so the transformed weights have it too, the same at
every position, and skipping works as in `panel`. N:M patterns are lost in the transform.

Every block of tiles takes three steps: transform the input (vectors over tiles, one matrix of
channels x tiles per position), multiply every position's matrices, transform the sums back. The
weights are transformed once, when an artifact is loaded (`winograd_prepare`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    activate_in_place,
    load,
    prefetch,
    splat,
    split_activation,
    store,
)
from nmcompile.kernels.avx512.panel.accumulators import Accumulators
from nmcompile.kernels.avx512.panel.config import PackedSizes, Panel
from nmcompile.kernels.avx512.panel.inner_loops import Weights, multiply
from nmcompile.kernels.avx512.staging import StagedLayout, stage_channel
from nmcompile.kernels.avx512.winograd.config import Tiling
from nmcompile.kernels.avx512.winograd.transforms import transform_input, transform_output
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Epilogue

GAP = LANES  # between the matrices: the same row of all must not fall into one cache set


def emit_winograd(name: str, epilogue: Epilogue, tiling: Tiling, sizes: PackedSizes) -> Any:
    """The TIR function (x, values, [indices, starts], [order], [bias], [residual], out).

    `values` are transformed ones; `sizes` those of the windows that they are made of.
    """
    return _Emitter(epilogue, tiling, sizes).emit(name)


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(self, epilogue: Epilogue, tiling: Tiling, sizes: PackedSizes) -> None:
        self.epilogue, self.tiling, self.sizes = epilogue, tiling, sizes
        self.conv, self.config = tiling.conv, tiling.config
        self.values_per_position = sizes.values // self.conv.taps * tiling.phases
        self.stride = tiling.vectors * LANES  # floats per row of both kinds of matrix
        self.in_pitch = self.conv.in_channels * tiling.phases * self.stride + GAP
        self.out_pitch = tiling.padded_outputs * self.stride + GAP

    def emit(self, name: str) -> Any:
        conv, sizes = self.conv, self.sizes
        out_shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", (conv.batch, conv.in_channels, conv.in_height, conv.in_width))
            self.values = func.tensor("values", (self.tiling.transformed(sizes.values),))
            self.indices = self.starts = self.bias = None
            if sizes.indices:
                self.indices = func.tensor("indices", (sizes.indices,), "uint16")
            if sizes.starts:
                self.starts = func.tensor("starts", (sizes.starts,), "int32")
            self.order = func.tensor("order", (sizes.order,), "int32") if sizes.order else None
            if self.epilogue.bias:
                self.bias = func.tensor("bias", (conv.out_channels,))
            self.residual, self.out = func.output(out_shape, self.epilogue)
            self.x = func.flat(x)
            if self.config.split_blocks:
                with T.parallel(0, self.tiling.blocks) as block:
                    self._block(block, *self._matrices())
            else:
                matrices = self._matrices()
                with T.serial(0, self.tiling.blocks) as block:
                    self._block(block, *matrices)
        return func.result()

    def _matrices(self) -> tuple[Buffer, Buffer]:
        """Memory for the transformed inputs and for the sums of one block."""
        positions = self.tiling.positions
        inputs = T.alloc_buffer((positions * self.in_pitch,), align=64)
        return inputs, T.alloc_buffer((positions * self.out_pitch,), align=64)

    def _shared(self, count: int) -> AbstractContextManager[Expr]:
        """A loop over one step of a block, which threads share unless they share the blocks."""
        frame: AbstractContextManager[Expr] = (
            T.serial(0, count) if self.config.split_blocks else T.parallel(0, count)
        )
        return frame

    def _block(self, block: Expr, inputs: Buffer, sums: Buffer) -> None:
        tiling, config = self.tiling, self.config
        first_row = T.bind(block % tiling.row_blocks * config.rows)
        image = T.bind(block // tiling.row_blocks * config.images)
        with self._shared(self.conv.in_channels) as channel:
            self._transform_inputs(inputs, image, channel, first_row)
        with self._shared(tiling.positions * tiling.lists) as item:
            self._multiply(inputs, sums, T.bind(item // tiling.lists), T.bind(item % tiling.lists))
        with self._shared(self.conv.out_channels) as place:
            self._transform_sums(sums, image, place, first_row)

    def _images(self, first: Expr) -> AbstractContextManager[Expr]:
        """The images of a block; the last block may have fewer."""
        count: Expr = self.config.images
        if self.conv.batch % self.config.images:
            count = T.min(count, self.conv.batch - first)
        frame: AbstractContextManager[Expr] = T.serial(0, count)
        return frame

    # Step 1. inputs[position, channel, tile] = B' d B

    def _transform_inputs(
        self, inputs: Buffer, image: Expr, channel: Expr, first_row: Expr
    ) -> None:
        tiling = self.tiling
        convs = [
            tiling.tile_conv(row, column)
            for row in range(tiling.stride)
            for column in range(tiling.stride)
        ]
        layout = StagedLayout.of(convs[0], self.config.rows)
        staged = T.alloc_buffer((layout.size,), align=64)
        # Vectors over the last tiles read on behind the copy.
        for at in range(0, 2 * LANES, LANES):
            store(staged, layout.channel + at, splat(0.0))
        if self.config.images > 1:
            self._clear(inputs, channel)
        with self._images(image) as i:
            plane = T.bind((image + i) * self.conv.in_channels + channel)
            for phase, conv in enumerate(convs):
                stage_channel(conv, layout, self.x, plane, first_row, staged, T.int32(0))
                row = T.bind((channel * tiling.phases + phase) * self.stride)
                self._transform_tiles(staged, layout, inputs, row + i * tiling.image_tiles)

    def _clear(self, inputs: Buffer, channel: Expr) -> None:
        """Zero the tiles of images that the last block lacks, and behind the last image."""
        row = T.bind(channel * (self.tiling.phases * self.stride))
        with T.serial(0, self.tiling.positions) as position:
            with T.serial(0, self.tiling.phases * self.tiling.vectors) as v:
                store(inputs, position * self.in_pitch + row + v * LANES, splat(0.0))

    def _transform_tiles(
        self, staged: Buffer, layout: StagedLayout, inputs: Buffer, at: Expr
    ) -> None:
        """The tiles of one image and phase, to `at` in the row of every position."""
        span = self.tiling.span

        def vector(v: Expr, active: int) -> None:
            d = [
                [T.bind(load(staged, v * LANES + layout.row_offset(y, x))) for x in range(span)]
                for y in range(span)
            ]
            first = T.bind(at + v * LANES)
            for y, values in enumerate(transform_input(d)):
                for x, value in enumerate(values):
                    store(inputs, (y * span + x) * self.in_pitch + first, value, active)

        full, rest = divmod(self.tiling.image_tiles, LANES)
        # Only another image's tiles must not be overwritten.
        if rest and self.config.images == 1:
            full, rest = full + 1, 0
        with T.serial(0, full) as v:
            vector(v, LANES)
        if rest:
            vector(T.int32(full), rest)

    # Step 2. sums[position, output, tile] = values[position, output, channel] x inputs

    def _multiply(self, inputs: Buffer, sums: Buffer, position: Expr, index: Expr) -> None:
        config, tiling = self.config, self.tiling
        weights = Weights(
            self.conv,
            tiling.products,
            self.values,
            self.indices,
            self.starts,
            T.bind(position * self.values_per_position),
        )
        channels = self.conv.in_channels
        which = index if self.indices is not None else T.bind(index * channels)
        with T.serial(0, config.list_outputs // config.outputs) as part:
            output = T.bind(index * config.list_outputs + part * config.outputs)

            def run(shape: Panel, vector: Expr) -> None:
                acc = Accumulators(config.outputs, shape, self.stride)
                rows = [output + j for j in range(config.outputs)]
                acc.start(None, rows)
                origin = T.bind(position * self.in_pitch + vector * LANES)
                multiply(weights, acc, inputs, which, part, channels, origin)
                acc.save(sums, rows, T.bind(position * self.out_pitch + vector * LANES))

            for shape, count, first in tiling.shapes:
                if count == 1:
                    run(shape, T.int32(first))
                    continue
                with T.serial(0, count) as step:
                    run(shape, T.bind(first + step * shape.vectors))

    # Step 3. out = activation(A' sums A + bias + residual)

    def _transform_sums(self, sums: Buffer, image: Expr, place: Expr, first_row: Expr) -> None:
        tiling, side, span = self.tiling, self.config.side, self.tiling.span
        pitch = (tiling.image_vectors + 1) * LANES
        pixels = T.alloc_buffer((side * side * pitch,), align=64)
        row = T.bind(place * self.stride)
        channel = place if self.order is None else T.bind(self.order[place])
        with self._images(image) as i:
            plane = T.bind((image + i) * self.conv.out_channels + channel)
            self._prefetch(plane, first_row)
            with T.serial(0, tiling.image_vectors) as v:
                at = T.bind(row + i * tiling.image_tiles + v * LANES)
                s = [
                    [T.bind(load(sums, (y * span + x) * self.out_pitch + at)) for x in range(span)]
                    for y in range(span)
                ]
                for y, values in enumerate(transform_output(s, side)):
                    for x, value in enumerate(values):
                        store(pixels, (y * side + x) * pitch + v * LANES, value)
            with T.serial(0, self.config.rows) as tile_row:
                for y in range(side):
                    out_row = T.bind((first_row + tile_row) * side + y)
                    at = T.bind(tile_row * tiling.width + y * side * pitch)
                    if tiling.row_blocks * self.config.rows * side == self.conv.out_height:
                        self._write_row(pixels, pitch, at, plane, out_row, channel)
                        continue
                    with T.If(out_row < self.conv.out_height):
                        with T.Then():
                            self._write_row(pixels, pitch, at, plane, out_row, channel)

    def _prefetch(self, plane: Expr, first_row: Expr) -> None:
        """Ask for the lines of a channel's outputs, and of what is added, while it is computed."""
        rows = self.config.rows * self.config.side
        first = (plane * self.conv.out_height + first_row * self.config.side) * self.conv.out_width
        first = T.bind(first)
        with T.serial(0, -(-rows * self.conv.out_width // LANES)) as line:
            at = T.bind(first + line * LANES)
            prefetch(self.out, at, LANES, write=True)
            if self.residual is not None and not self.epilogue.in_place:
                prefetch(self.residual, at, LANES)

    def _write_row(
        self, pixels: Buffer, pitch: int, at: Expr, plane: Expr, out_row: Expr, channel: Expr
    ) -> None:
        """Interleave the columns of one row of tiles to a row of pixels."""
        conv, side = self.conv, self.config.side
        now, later = split_activation(self.epilogue.activation)
        where = T.bind((plane * conv.out_height + out_row) * conv.out_width)
        for first in range(0, self.tiling.width, LANES):
            columns = [T.bind(load(pixels, at + (x * pitch + first))) for x in range(side)]
            for begin in range(0, side * LANES, LANES):
                column = first * side + begin
                active = min(LANES, conv.out_width - column)
                if active <= 0:
                    continue
                places = range(begin, begin + LANES)
                value = T.Shuffle(columns, [p % side * LANES + p // side for p in places])
                if self.bias is not None:
                    value = value + splat(self.bias[channel])
                if self.residual is not None:
                    value = value + load(self.residual, where + column, active)
                store(self.out, where + column, activate(value, now), active)
        activate_in_place(self.out, where, conv.out_width, later)
