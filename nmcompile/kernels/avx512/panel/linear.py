"""Matrix products over panels: rows of features in memory, panels and sums across them.

A matrix product is a 1x1 convolution whose pixels are the rows of x, but that features of a row are
neighbours in memory where pixels of a channel would be. Panels are filled by transposing blocks of
16 rows by 16 features in registers. Sums rest by output, and once 16 outputs are complete they are
transposed back: bias, residual and activation come with the sums or behind the transposition, and
whole cache lines are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import (
    LANES,
    Buffer,
    Expr,
    activate,
    load,
    prefetch,
    splat,
    split_activation,
    store,
    transpose,
)
from nmcompile.kernels.avx512.panel.accumulators import Accumulators, Destination
from nmcompile.kernels.avx512.panel.config import PackedSizes, Panel, PanelConfig
from nmcompile.kernels.avx512.panel.conv import PanelEmitter, Step, Tile
from nmcompile.kernels.spec import Epilogue, Linear


def emit_panel_linear(
    name: str, linear: Linear, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
) -> Any:
    """The TIR function (x, values, [indices, starts], [order], [bias], [residual], out)."""
    return _LinearEmitter(linear, epilogue, config, sizes).emit(name)


def writes_early(config: PanelConfig, scattered: bool) -> bool:
    """Whether outputs follow each other in the order of lists, and 16 are complete with a list."""
    if config.lists == "private" or scattered:
        return False
    return LANES % config.lane_outputs == 0 or config.lane_outputs % LANES == 0


class _FeatureSource:
    """Fills panels from rows of features."""

    def __init__(self, linear: Linear, x: Buffer, whole: bool) -> None:
        """Take the flat input; `whole`: whether every block has a multiple of 16 features."""
        self._features, self._x, self._whole = linear.in_features, x, whole

    def fill(
        self, panel: Buffer, shape: Panel, image: Expr, channel: Expr, count: Expr, first: Expr
    ) -> None:
        """Panel row c: feature `channel` + c of the rows of x from `first` on, for c < `count`.

        Panel rows up to the next multiple of 16 are written too.
        """
        full, rest = divmod(shape.pixels, LANES)

        def block(c: Expr, t: Expr, rows: int) -> None:
            active = LANES if self._whole else T.bind(T.min(count - c, LANES))
            base = T.bind((first + t * LANES) * self._features + channel + c)
            given = [T.bind(load(self._x, base + r * self._features, active)) for r in range(rows)]
            columns = transpose([*given, *[splat(0.0)] * (LANES - rows)])
            for k, column in enumerate(columns):
                store(panel, (c + k) * shape.stride + t * LANES, column)

        with T.serial(0, (count + (LANES - 1)) // LANES) as chunk:
            c = T.bind(chunk * LANES)
            if full:
                with T.serial(0, full) as t:
                    block(c, t, LANES)
            if rest:
                block(c, T.int32(full), rest)


class _LinearEmitter(PanelEmitter):
    """A convolution of 1x1 but for where panels come from and sums go."""

    def __init__(
        self, linear: Linear, epilogue: Epilogue, config: PanelConfig, sizes: PackedSizes
    ) -> None:
        super().__init__(linear.as_conv, epilogue, config, sizes)
        self._linear = linear
        self._early = writes_early(config, sizes.scattered)
        # Of one chunk: its outputs follow each other.
        self._outputs = self.padded_out // config.chunks
        assert config.chunks == 1 or not sizes.scattered

    @property
    def extras(self) -> bool:
        return False

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._linear.shapes

    def read(self, x: Buffer) -> None:
        whole = self.config.block_channels % LANES == self._linear.in_features % LANES == 0
        self.source = _FeatureSource(self._linear, x, whole)

    @property
    def panel_rows(self) -> int:
        return _whole_lanes(self.config.block_channels)

    @property
    def _at_once(self) -> int:
        """Outputs that are complete, and written, together."""
        return max(LANES, self.config.lane_outputs) if self._early else self._outputs

    def resting_rows(self) -> int:
        return _whole_lanes(self._at_once if self.blocks == 1 else self._outputs)

    def rows_of(
        self, tile: Tile, index: Expr, part: Expr, channels: Sequence[Expr]
    ) -> Sequence[Expr]:
        if not self._early:
            return [T.bind(channel - tile.chunk * self._outputs) for channel in channels]
        if self.blocks == 1:
            index = index % (self._at_once // self.config.lane_outputs)
        return super().rows_of(tile, index, part, channels)

    def aim(self, tile: Tile, step: Step) -> None:
        """Ask for some of the lines that will be written with these outputs."""
        config, out_features = self.config, self._linear.out_features
        if not self._early:
            return
        place = step.index * config.lane_outputs + step.part * config.outputs
        row = T.bind(tile.first + place % LANES * tile.shape.vectors)
        feature = T.bind(step.channels[0] // LANES * LANES)

        def lines() -> None:
            for k in range(config.outputs * tile.shape.vectors):
                where = (row + k) * out_features + feature
                if self.residual is not None and not self.epilogue.in_place:
                    prefetch(self.residual, where, LANES)
                prefetch(self.out, where, LANES, write=True)

        self.in_last_block(step.block, lines)

    def end(
        self,
        sums: Accumulators,
        partial: Buffer | None,
        target: Destination | None,
        tile: Tile,
        step: Step,
    ) -> None:
        assert partial is not None
        sums.save(partial, step.rows)

    def end_list(self, partial: Buffer | None, tile: Tile, block: Expr, index: Expr) -> None:
        if not self._early:
            return
        lists = self._at_once // self.config.lane_outputs
        count = self.lists // self.config.chunks
        begin = T.bind(index // lists * self._at_once)

        def write() -> None:
            if lists == 1:
                self._write(partial, tile, begin, self._at_once)
                return
            done = index % lists == lists - 1
            with T.If(done if count % lists == 0 else tirx.any(done, index == count - 1)):
                with T.Then():
                    self._write(partial, tile, begin, self._at_once)

        self.in_last_block(block, write)

    def end_block(self, partial: Buffer | None, tile: Tile, block: Expr) -> None:
        if not self._early:
            self.in_last_block(block, lambda: self._write(partial, tile, T.int32(0), self._outputs))

    def _write(self, partial: Buffer, tile: Tile, begin: Expr, outputs: int) -> None:
        """Transpose complete sums of some outputs, from `begin` on in the chunk, and write them."""
        resting = T.int32(0) if self._early and self.blocks == 1 else begin
        with T.serial(0, -(-outputs // LANES)) as part:
            feature = T.bind(tile.chunk * self._outputs + begin + part * LANES)
            active = self._active(begin + part * LANES, feature)
            self._write_lanes(partial, tile, T.bind(resting + part * LANES), feature, active)

    def _active(self, place: Expr, feature: Expr) -> Expr:
        """How many of the 16 outputs from `place` on in a chunk there are."""
        if self._outputs % LANES == self._linear.out_features % LANES == 0:
            if self.padded_out == self._linear.out_features:
                return LANES
        left = T.min(self._outputs - place, self._linear.out_features - feature)
        return T.bind(T.max(T.min(left, LANES), 0))

    def _write_lanes(
        self, partial: Buffer, tile: Tile, row: Expr, feature: Expr, active: Expr
    ) -> None:
        """The same for 16 outputs, which rest from `row` on."""
        shape, pitch = tile.shape, self._linear.out_features
        full, rest = divmod(shape.pixels, LANES)
        now, later = split_activation(self.epilogue.activation)

        def block(t: Expr, rows: int) -> None:
            base = T.bind(row * shape.stride + t * LANES)
            given = [T.bind(load(partial, base + j * shape.stride)) for j in range(LANES)]
            where = T.bind((tile.first + t * LANES) * pitch + feature)
            for r, value in enumerate(transpose(given)[:rows]):
                if self.residual is not None:
                    value = value + load(self.residual, where + r * pitch, active)
                store(self.out, where + r * pitch, activate(value, now), active)

        if full:
            with T.serial(0, full) as t:
                block(t, LANES)
        if rest:
            block(T.int32(full), rest)
        if later.kind != "none":
            with T.serial(0, shape.pixels) as r:
                where = T.bind((tile.first + r) * pitch + feature)
                store(self.out, where, activate(load(self.out, where, active), later), active)


def _whole_lanes(count: int) -> int:
    """The next multiple of 16."""
    return -(-count // LANES) * LANES
