"""Convolutions over NHWC with output channels in lanes: products of four bytes, or of two bfloat16.

Everything here counts bytes; `numbers` says what they are.

A tile is a few pixels of a row, or of some whole rows, times a few vectors of 16 output channels,
whose sums stay in registers. Dense tiles broadcast four bytes of each pixel and multiply them with
the weights of 16 outputs at a time; so do those of 1xN, of the bytes that a list keeps: where they
lie, or gathered first. In picked ones every lane chooses four of 64 bytes, so that each output has
a list of its own, and what is shared by the pixels of a tile is read once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.avx512_vnni.lanes import gather
from nmcompile.kernels.avx512_vnni.lanes.config import (
    LanesConfig,
    OutputGroups,
    tiles_of,
)
from nmcompile.kernels.avx512_vnni.lanes.finish import write
from nmcompile.kernels.avx512_vnni.lanes.inner_loops import (
    Lists,
    Pixels,
    Sums,
    Window,
    add_listed,
    add_picked,
    add_shared,
)
from nmcompile.kernels.avx512_vnni.lanes.numbers import Numbers
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading, picked_pixels
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d

Shape = tuple[int, ...]
LISTS = (("offsets", "int32"), ("index", "int8"), ("quads", "int32"))


def emit_lanes(
    name: str,
    x_shape: Shape,
    out_shape: Shape,
    reading: Reading,
    numbers: Numbers,
    config: LanesConfig,
    gathered: int,
    strided: Conv2d | None,
) -> Any:
    """The TIR function (x, weights, [lists], ..., [residual], out).

    `numbers` declare what is left out here; the lists are as `PackedWeights` names them, and so is
    `gathered`; `strided` is the layer's.
    """
    emitter = _Emitter(reading, numbers, config, gathered, strided)
    return emitter.emit(name, x_shape, out_shape)


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self,
        reading: Reading,
        numbers: Numbers,
        config: LanesConfig,
        gathered: int,
        strided: Conv2d | None,
    ) -> None:
        self.reading, self.numbers, self.config = reading, numbers, config
        self.pitch, self.strided = gathered, strided
        self.groups = OutputGroups.of(reading.conv.out_channels, config.vectors)
        self.full, self.rest = tiles_of(reading.grid[2], config.pixels)

    def emit(self, name: str, x_shape: Shape, out_shape: Shape) -> Any:
        numbers, outputs = self.numbers, self.reading.conv.out_channels
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", x_shape, numbers.dtype)
            self.weights = func.list_of("weights", "int8")
            if self.config.method != "dense":
                self._lists(func)
            self.rows, self.finish = numbers.declare(func, out_shape, outputs)
            with numbers.instructions():
                source = func.bytes_of(x)
                if self.strided is not None:
                    source = picked_pixels(source, self.strided)
                self.raster = self.reading.raster(source, numbers.zero)
                self._items()
        return func.result()

    def _lists(self, func: PrimFuncBuilder) -> None:
        starts = func.list_of("starts", "int32")
        if self.config.method == "gathered":
            sources = func.list_of("sources", "int32")
            offsets, index, quads = (func.list_of(name, kind) for name, kind in LISTS)
            self.gathers = gather.Lists(starts, sources, offsets, index)
            self.quads = quads
        else:
            lists = LISTS if self.config.method == "picked" else LISTS[:2]
            self.picks = Lists(starts, *(func.list_of(name, kind) for name, kind in lists))

    def _lists_of_outputs(self) -> int:
        return -(-self.reading.conv.out_channels // self.config.list_outputs)

    def _items(self) -> None:
        """Parallel over (chunk of output channels, image, block of rows, block of tiles)."""
        config = self.config
        images, rows, _ = self.reading.grid
        per_row = self.full + (self.rest > 0)
        downs, rights = -(-rows // config.rows), -(-per_row // config.tiles)
        with T.parallel(0, config.chunks * images * downs * rights) as item:
            right = T.bind(item % rights)
            down = T.bind(item // rights % downs)
            image = T.bind(item // (rights * downs) % images)
            chunk = T.bind(item // (rights * downs * images))
            row, tile = T.bind(down * config.rows), T.bind(right * config.tiles)
            block = _Block(
                image,
                row,
                tile,
                T.bind(T.min(T.int32(config.rows), rows - row)),
                T.bind(T.min(T.int32(config.tiles), per_row - tile)),
            )
            if config.method == "gathered":
                self._chunk_of_lists(chunk, block)
            else:
                begin, count = self._part(chunk, self.groups.count)
                with T.serial(0, count) as nth:
                    self._group(T.bind(begin + nth), block)

    def _part(self, chunk: Expr, count: int) -> tuple[Expr, Expr]:
        """The first of so many things that belongs to a chunk, and how many do."""
        chunks = self.config.chunks
        begin = T.bind(chunk * count // chunks)
        return begin, T.bind((chunk + 1) * count // chunks - begin)

    def _chunk_of_lists(self, chunk: Expr, block: _Block) -> None:
        """Gather what a list keeps of the block, then run its outputs over it."""
        config, columns = self.config, self.reading.grid[2]
        self.gathered = gather.Gathered(self.reading, config, self.gathers, self.raster, self.pitch)
        column = T.bind(block.tile * config.pixels)
        width = T.bind(T.min(block.tiles * config.pixels, columns - column))
        at = T.bind(self.reading.position(block.image, block.row, column))
        per_list = config.list_outputs // (LANES * config.vectors)
        begin, count = self._part(chunk, self._lists_of_outputs())
        with T.serial(0, count) as nth:
            which = T.bind(begin + nth)
            self.gathered.fill(which, at, block.rows, width)
            first = T.bind(which * per_list)
            with T.serial(0, T.min(per_list, self.groups.count - first)) as part:
                self._group(T.bind(first + part), block)

    def _group(self, group: Expr, block: _Block) -> None:
        """The outputs of one group over the tiles of a block; the last group has its own body."""
        groups, whole = self.groups, self.config.vectors * LANES
        if groups.count == 1 or groups.last_outputs == whole:
            self._tiles(group, groups.last, groups.last_outputs, block)
            return
        with T.If(group < groups.count - 1):
            with T.Then():
                self._tiles(group, self.config.vectors, whole, block)
            with T.Else():
                self._tiles(group, groups.last, groups.last_outputs, block)

    def _tiles(self, group: Expr, vectors: int, outputs: int, block: _Block) -> None:
        """The tiles of a block; what is left of a row, or of its rows, has its own body."""
        pixels, lines = self.config.pixels, self.config.lines
        left = self.reading.grid[1] % lines

        def tile(width: int, height: int) -> None:
            self._tile(_Tile(group, vectors, outputs, width, height), block, row, column)

        with T.grid(T.ceildiv(block.rows, lines), block.tiles) as (step, column):
            row = T.bind(step * lines)
            if self.full and self.rest:
                with T.If(block.tile + column < self.full):
                    with T.Then():
                        tile(pixels, lines)
                    with T.Else():
                        tile(self.rest, lines)
            elif left:
                with T.If(block.rows - row >= lines):
                    with T.Then():
                        tile(pixels, lines)
                    with T.Else():
                        tile(pixels, left)
            else:
                tile(pixels if self.full else self.rest, lines)

    def _tile(self, tile: _Tile, block: _Block, row: Expr, column: Expr) -> None:
        """The sums of one tile of a block, from beginning to end."""
        reading, group = self.reading, tile.group
        _, rows, columns = reading.grid
        sums = Sums(tile.pixels * tile.lines, tile.vectors, self.numbers.sums, self.numbers.dot)
        first = T.bind(group * (self.config.vectors * LANES))
        sums.start(self.rows, first)
        line = T.bind(block.row + row)
        place = T.bind((block.tile + column) * self.config.pixels)
        if self.config.method == "gathered":
            within = column * self.config.pixels
            pixels = self.gathered.pixels(row, within, tile.pixels, tile.lines)
            self._gathered(sums, group, pixels)
        else:
            base = T.bind(reading.position(block.image, line, place))
            offsets = Pixels.offsets_of(tile.pixels, reading.pitch, tile.lines, reading.down)
            pixels = Pixels(self.raster, base, offsets, reading.active)
            if self.config.method == "dense":
                self._dense(sums, group, pixels)
            else:
                self._picked(sums, group, pixels)
        pixel = (block.image * rows + line) * columns + place
        write(self.finish, sums, pixel, first, tile.outputs)

    def _picked(self, sums: Sums, group: Expr, pixels: Pixels) -> None:
        """Quads that are picked, by lists of their own or of the group."""
        origin: Expr = T.int32(0)
        starts, quads = self.picks.starts, self.picks.quads
        narrower = self.config.vectors - sums.vectors
        if narrower:  # the last group, behind wider ones
            last = self.groups.count - 1
            boundary = starts[2 * last] if quads is None else quads[starts[last]]
            origin = T.bind(boundary * narrower)
        add = add_listed if quads is None else add_picked
        add(sums, pixels, self.picks, group, self.weights, origin)

    def _dense(self, sums: Sums, group: Expr, pixels: Pixels) -> None:
        reading, vectors = self.reading, self.config.vectors
        window = Window(*reading.window, *reading.window_steps, reading.quads)
        if reading.by_group:
            per_group = reading.conv.group_out // (vectors * LANES)
            base = T.bind(pixels.base + group // per_group * reading.conv.group_in)
            pixels = Pixels(pixels.source, base, pixels.offsets)
        each = window.rows * window.columns * reading.quads * vectors * BYTES
        add_shared(sums, pixels, window, self.weights, group * each)

    def _gathered(self, sums: Sums, group: Expr, pixels: Pixels) -> None:
        config, taps = self.config, self.reading.conv.taps
        per_list = config.list_outputs // (LANES * config.vectors)
        which, part = T.bind(group // per_list), T.bind(group % per_list)
        before = T.bind(self.quads[which])
        quads = T.bind(self.quads[which + 1] - before)
        groups_before = before * per_list + quads * part
        start = T.bind(groups_before * (taps * config.vectors * BYTES))
        add_shared(sums, pixels, self.gathered.window(quads), self.weights, start)


@dataclass(frozen=True)
class _Tile:
    """What is summed together: so many pixels of so many rows, for some outputs of a group."""

    group: Expr
    vectors: int
    outputs: int
    pixels: int
    lines: int


class _Block:
    """Output pixels that one work item computes: where they begin, and how many rows and tiles."""

    def __init__(self, image: Expr, row: Expr, tile: Expr, rows: Expr, tiles: Expr) -> None:
        self.image, self.row, self.tile = image, row, tile
        self.rows, self.tiles = rows, tiles
