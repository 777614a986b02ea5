"""Convolutions over NHWC bytes on the tile unit.

Rows of a tile of activations are pixels, 64 channel bytes of each; its columns, those of a tile of
weights, are 16 output channels. Dense tiles are loaded from the input as it lies, those of 1xN from
what a list keeps, brought together first. Sums go through memory to be requantised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr
from nmcompile.kernels.avx512_amx.instructions import Hardware, Product, Tiles, hold_whole
from nmcompile.kernels.avx512_amx.tiles.config import Registers, TilesConfig
from nmcompile.kernels.avx512_amx.tiles.finish import Finishing, Pending, Together
from nmcompile.kernels.avx512_amx.tiles.layout import Steps
from nmcompile.kernels.avx512_amx.tiles.packing import Gathering
from nmcompile.kernels.avx512_vnni.emit import BYTES, prefetch_line
from nmcompile.kernels.avx512_vnni.lanes import gather
from nmcompile.kernels.avx512_vnni.lanes.config import OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.numbers import Numbers
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading, picked_pixels
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d

Shape = tuple[int, ...]
LISTS = (("starts", "int32"), ("sources", "int32"), ("offsets", "int32"), ("index", "int8"))


def emit_tiles(
    name: str,
    x_shape: Shape,
    out_shape: Shape,
    reading: Reading,
    numbers: Numbers,
    product: Product,
    config: TilesConfig,
    gathering: Gathering | None,
    strided: Conv2d | None,
    unit: type[Any] = Hardware,
) -> Any:
    """The TIR function (x, weights, [lists], ..., [residual], out).

    Args:
        name: of the function.
        x_shape: of the input.
        out_shape: of the output.
        reading: of a convolution whose input channels are bytes.
        numbers: what is multiplied, and what becomes of the sums: declares what is left out above.
        product: the instruction that multiplies them.
        config: of the tiles.
        gathering: of the lists, which are as `Pieces` names them; None where there are none.
        strided: whose pixels `reading` reads, brought together first; None where it reads all.
        unit: what emits the tile instructions.
    """
    emitter = _Emitter(reading, numbers, product, config, gathering, strided, unit)
    return emitter.emit(name, x_shape, out_shape)


@dataclass(frozen=True)
class _Window:
    """Segments under one output pixel, two levels of them; bytes from one to the next."""

    rows: int
    columns: int
    down: Expr
    right: Expr


@dataclass(frozen=True)
class _Pixels:
    """Where the tiles of pixels of one product begin, and what is written of each.

    skips: pixels that are not: those before, and all where a tile is there for nothing.
    """

    source: Buffer
    pitch: int
    bases: tuple[Expr, ...]
    firsts: tuple[Expr, ...]
    skips: tuple[Expr, ...]


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self,
        reading: Reading,
        numbers: Numbers,
        product: Product,
        config: TilesConfig,
        gathering: Gathering | None,
        strided: Conv2d | None,
        unit: type[Any],
    ) -> None:
        self.reading, self.numbers, self.config = reading, numbers, config
        self.product, self.gathering, self.strided = product, gathering, strided
        self.registers = Registers.of(config.across, config.vectors)
        registers = self.registers
        self.unit: Tiles = unit(registers.activations, registers.weights, numbers.sums)
        self.groups = OutputGroups.of(reading.conv.out_channels, config.vectors)
        self.steps = Steps.of(reading.segment) if gathering is None else gathering.steps

    def emit(self, name: str, x_shape: Shape, out_shape: Shape) -> Any:
        numbers = self.numbers
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", x_shape, numbers.dtype)
            self.weights = func.list_of("weights", "int8")
            if self.gathering is not None:
                self.lists = gather.Lists(*(func.list_of(*each) for each in LISTS))
            self.rows, self.finish = numbers.declare(
                func, out_shape, self.reading.conv.out_channels
            )
            with numbers.instructions():
                source = func.bytes_of(x)
                if self.strided is not None:
                    source = picked_pixels(source, self.strided)
                self.raster = hold_whole(self.reading.raster(source, numbers.zero))
                self._items()
        return func.result()

    def _items(self) -> None:
        """Parallel over (chunk of output channels, image, block of rows, block of tiles)."""
        config = self.config
        images, rows, columns = self.reading.grid
        wide = config.tiles * config.pixels
        downs, rights = -(-rows // config.rows), -(-columns // wide)
        with T.parallel(0, config.chunks * images * downs * rights) as item:
            right = T.bind(item % rights)
            down = T.bind(item // rights % downs)
            image = T.bind(item // (rights * downs) % images)
            chunk = T.bind(item // (rights * downs * images))
            row = T.bind(down * config.rows)
            # The last block of a row begins earlier, so that it is as wide as the others.
            first = T.bind(T.min(right * wide, max(0, columns - wide)))
            height = T.bind(T.min(T.int32(config.rows), rows - row))
            block = _Block(image, row, first, T.bind(right * wide), height)
            self.unit.configure(config.pixels, self.steps.depth)
            self.pending = Pending(config.across, config.vectors, self.numbers.sums)
            if self.gathering is None:
                begin, count = self._part(chunk, self.groups.count)
                with T.serial(0, count) as nth:
                    group = T.bind(begin + nth)
                    self._group(group, group * self._tiles_of_group(), None, block)
            else:
                self._chunk_of_lists(chunk, block, self.gathering)
            whole = config.vectors * LANES
            if self.groups.count > 1 or self.groups.last_outputs == whole:
                self.finishing(config.vectors, whole).rest()
            self.unit.release()

    def _part(self, chunk: Expr, count: int) -> tuple[Expr, Expr]:
        """The first of so many things that belongs to a chunk, and how many do."""
        chunks = self.config.chunks
        begin = T.bind(chunk * count // chunks)
        return begin, T.bind((chunk + 1) * count // chunks - begin)

    def _tiles_of_group(self) -> int:
        """Tiles of weights of one group of outputs; dense."""
        rows, columns = self.reading.window
        return rows * columns * self.steps.count * self.config.vectors

    def _chunk_of_lists(self, chunk: Expr, block: _Block, gathering: Gathering) -> None:
        """Gather what a list keeps of the block, then multiply it with its outputs."""
        config, conv = self.config, self.reading.conv
        self.gathered = gather.Gathered(
            self.reading, config, self.lists, self.raster, gathering.pitch
        )
        hold_whole(self.gathered.bytes)
        columns = min(self.reading.grid[2], config.tiles * config.pixels)
        at = T.bind(self.reading.position(block.image, block.row, block.first))
        per_list = config.list_outputs // (LANES * config.vectors)
        lists = -(-conv.out_channels // config.list_outputs)
        begin, count = self._part(chunk, lists)
        with T.serial(0, count) as nth:
            which = T.bind(begin + nth)
            self.gathered.fill(which, at, block.rows, T.int32(columns))
            first = T.bind(which * per_list)
            start = self.lists.starts[which]
            pieces = T.bind(self.lists.starts[which + 1] - start)
            vectors = config.list_outputs // LANES
            if gathering.pitch <= BYTES:
                rows = conv.kernel[0] * (1 if gathering.by_row else conv.kernel[1])
                each: Expr = rows * self.steps.count
                before = which * (each * vectors)
                pieces = self.steps.count
            else:
                each = T.bind(pieces * conv.taps)
                before = T.bind(start * (conv.taps * vectors))
            with T.serial(0, T.min(per_list, self.groups.count - first)) as part:
                tiles = before + part * (each * config.vectors)
                self._group(T.bind(first + part), tiles, pieces, block)

    def _group(self, group: Expr, tiles: Expr, pieces: Expr | None, block: _Block) -> None:
        """The outputs of one group over a block; the last group has its own body.

        `tiles` are those of weights before the group's.
        """
        groups, whole = self.groups, self.config.vectors * LANES
        start = T.bind(tiles * (self.steps.depth * LANES))
        if groups.count == 1 or groups.last_outputs == whole:
            self._products(group, start, pieces, groups.last, groups.last_outputs, block)
            return
        with T.If(group < groups.count - 1):
            with T.Then():
                self._products(group, start, pieces, self.config.vectors, whole, block)
            with T.Else():
                self._products(group, start, pieces, groups.last, groups.last_outputs, block)

    def _products(
        self,
        group: Expr,
        start: Expr,
        pieces: Expr | None,
        vectors: int,
        outputs: int,
        block: _Block,
    ) -> None:
        """Tiles of a block, `across` at a time."""
        config = self.config
        count = T.bind(block.rows * config.tiles)
        first = T.bind(group * (config.vectors * LANES))
        finishing = self.finishing(vectors, outputs)
        whole = config.vectors, config.vectors * LANES
        if (vectors, outputs) != whole and self.groups.count > 1:
            self.finishing(*whole).rest()
        window = self._window()
        taken = window.rows * window.columns * (self.steps.count if pieces is None else pieces)
        size = self.steps.depth * LANES * vectors  # bytes of weights that a step takes
        after = T.bind(start + taken * size)
        # The next group's weights are asked for in equal shares by the products of this one.
        products = max(1, config.rows * config.tiles // config.across)
        lines = -(-size // (BYTES * products))
        with T.serial(0, T.ceildiv(count, config.across)) as step:
            pixels = self._pixels(step * config.across, count, block)
            for j in range(config.across):
                for u in range(vectors):
                    # One row for all pixels.
                    self.unit.load(j * vectors + u, self.rows, first + u * LANES, 0)
            ahead = T.bind(after + step * (taken * (lines * BYTES)))
            self._multiply(pixels, start, pieces, vectors, finishing, ahead, lines)
            finishing.rest()
            finishing.begin(first, pixels.firsts, pixels.skips)
        if (vectors, outputs) != whole:
            finishing.rest()

    def finishing(self, vectors: int, outputs: int) -> Finishing:
        """What becomes of the sums of a group."""
        config = self.config
        wide = config.tiles * config.pixels
        ragged = self.reading.grid[2] % wide != 0 or config.across > 1
        shape = Together(config.across, config.pixels, vectors)
        return Finishing(self.finish, self.unit, self.pending, shape, outputs, ragged)

    def _pixels(self, tile: Expr, count: Expr, block: _Block) -> _Pixels:
        """The tiles from one on of a block."""
        config, reading = self.config, self.reading
        _, rows, columns = reading.grid
        bases, firsts, skips = [], [], []
        for j in range(config.across):
            number = T.bind(T.min(tile + j, count - 1)) if j else tile
            row, column = number // config.tiles, number % config.tiles
            wanted = T.bind(block.wanted + column * config.pixels)
            begin = T.bind(T.min(wanted, columns - config.pixels))
            skip = T.bind(T.min(wanted - begin, config.pixels))
            if j:
                skip = T.bind(T.Select(tile + j < count, skip, T.int32(config.pixels)))
            line = T.bind(block.row + row)
            if self.gathering is None:
                base = reading.position(block.image, line, begin)
            else:
                base = self.gathered.at(row, begin - block.first)
            bases.append(T.bind(base))
            firsts.append(T.bind((block.image * rows + line) * columns + begin))
            skips.append(skip)
        source, pitch = (
            (self.raster, reading.pitch)
            if self.gathering is None
            else (self.gathered.bytes, self.gathered.step)
        )
        return _Pixels(source, pitch, tuple(bases), tuple(firsts), tuple(skips))

    def _multiply(
        self,
        pixels: _Pixels,
        start: Expr,
        pieces: Expr | None,
        vectors: int,
        finishing: Finishing,
        ahead: Expr,
        lines: int,
    ) -> None:
        """The sums of `across` x `vectors` tiles, while those before are finished.

        `ahead`: where weights begin that are asked for meanwhile, so many `lines` in each step.
        """
        unit, across, registers = self.unit, self.config.across, self.registers
        window = self._window()
        steps = self.steps.count if pieces is None else pieces
        size = self.steps.depth * LANES
        known = isinstance(steps, int) and window.rows * window.columns * steps
        with T.grid(window.rows, window.columns, steps) as (y, x, step):
            within = step * BYTES
            if self.steps.starts[-1] % BYTES:
                within = T.min(within, T.int32(self.steps.starts[-1]))
            at = T.bind(y * window.down + x * window.right + within)
            nth = (y * window.columns + x) * steps + step
            where = T.bind(start + nth * (size * vectors))
            loaded: set[int] = set()
            for j in range(across):
                a = registers.activations[j % len(registers.activations)]
                unit.load(a, pixels.source, pixels.bases[j] + at, pixels.pitch)
                for u in range(vectors):
                    b = registers.weights[u % len(registers.weights)]
                    if u not in loaded:
                        unit.load(b, self.weights, where + u * size, BYTES)
                        loaded.add(u)
                    unit.multiply(j * vectors + u, a, b, self.product)
            for line in range(lines):
                prefetch_line(self.weights, ahead + (nth * lines + line) * BYTES)
            finishing.some(known or window.rows * window.columns)

    def _window(self) -> _Window:
        if self.gathering is None:
            return _Window(*self.reading.window, *self.reading.window_steps)
        rows, columns = self.reading.conv.kernel
        down, right = self.gathered.window_steps
        return _Window(rows, 1 if self.gathering.by_row else columns, down, right)


class _Block:
    """Output pixels that one work item computes.

    image, row: where they begin. first: the first column that is read. wanted: the first that is
    written. rows: how many.
    """

    def __init__(self, image: Expr, row: Expr, first: Expr, wanted: Expr, rows: Expr) -> None:
        self.image, self.row, self.first, self.wanted = image, row, first, wanted
        self.rows = rows
