"""Convolutions over NHWC bytes with output channels in lanes: the integer kernels of AVX-512 VNNI.

A tile is a few pixels of one row times a few vectors of 16 output channels, whose sums stay in
registers. Dense tiles broadcast four bytes of each pixel and multiply them with the weights of 16
outputs at a time; in picked ones every lane chooses four of 64 bytes, so that each output has a
list of its own and what is shared by the pixels of a tile is read once for all of them.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, lanes, load
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    QUAD,
    broadcast_quad,
    dot,
    load_bytes,
    pick_bytes,
)
from nmcompile.kernels.avx512_vnni.lanes.config import (
    LanesConfig,
    OutputGroups,
    PackedSizes,
    padded_outputs,
    tiles_of,
)
from nmcompile.kernels.avx512_vnni.lanes.finish import Finish
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.avx512_vnni.requantise import Requantiser
from nmcompile.kernels.integers import STEPS, IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder

Shape = tuple[int, ...]
Sums = list[list[Buffer]]


def emit_lanes(
    name: str,
    x_shape: Shape,
    out_shape: Shape,
    reading: Reading,
    epilogue: IntegerEpilogue,
    config: LanesConfig,
    sizes: PackedSizes,
    zero: int,
) -> Any:
    """The TIR function (x, weights, [lists], offset, scale, steps, [residual], out).

    The lists of picked bytes are `starts`, `offsets` and `quads`; `zero` is what borders are filled
    with.
    """
    return _Emitter(reading, epilogue, config, sizes, zero).emit(name, x_shape, out_shape)


class _Emitter:
    """State of one function while it is emitted."""

    def __init__(
        self,
        reading: Reading,
        epilogue: IntegerEpilogue,
        config: LanesConfig,
        sizes: PackedSizes,
        zero: int,
    ) -> None:
        self.reading, self.epilogue, self.config = reading, epilogue, config
        self.sizes, self.zero = sizes, zero
        self.groups = OutputGroups.of(reading.conv.out_channels, config.vectors)

    def emit(self, name: str, x_shape: Shape, out_shape: Shape) -> Any:
        outputs = self.reading.conv.out_channels
        with PrimFuncBuilder(name) as func:
            x = func.tensor("x", x_shape, "uint8")
            self.weights = func.tensor("weights", (self.sizes.weights,), "int8")
            if self.config.method == "picked":
                self.starts = func.tensor("starts", (self.groups.count + 1,), "int32")
                self.offsets = func.tensor("offsets", (self.sizes.offsets,), "int32")
                self.quads = func.tensor("quads", (self.sizes.offsets + 1,), "int32")
            self.offset = func.tensor("offset", (padded_outputs(self.reading.conv),), "int32")
            scale = func.tensor("scale", (padded_outputs(self.reading.conv),))
            steps = func.tensor("steps", (len(STEPS),))
            residual, out = func.output(out_shape, self.epilogue, self.epilogue.out, "uint8")
            requantiser = Requantiser(self.epilogue, steps)
            self.finish = Finish(requantiser, scale, residual, out, outputs)
            self.raster = self.reading.raster(func.flat(x), self.zero)
            self._items()
        return func.result()

    def _items(self) -> None:
        """Parallel over (chunk of output channels, block of tiles)."""
        reading, config, groups = self.reading, self.config, self.groups
        full, rest = tiles_of(reading.columns, config.pixels)
        per_row = full + (rest > 0)
        tiles = reading.rows * per_row
        blocks = -(-tiles // config.block)
        with T.parallel(0, config.chunks * blocks) as item:
            chunk, block = T.bind(item // blocks), T.bind(item % blocks)
            first = T.bind(block * config.block)
            last = T.bind(T.min(first + config.block, tiles))
            begin = T.bind(chunk * groups.count // config.chunks)
            end = T.bind((chunk + 1) * groups.count // config.chunks)

            def tile_of(group: Expr, vectors: int, outputs: int) -> None:
                with T.serial(first, last) as tile:
                    row, place = T.bind(tile // per_row), T.bind(tile % per_row)
                    column = T.bind(place * config.pixels)
                    if not (full and rest):
                        pixels = config.pixels if full else rest
                        self._tile(group, vectors, outputs, row, column, pixels)
                        return
                    with T.If(place < full):
                        with T.Then():
                            self._tile(group, vectors, outputs, row, column, config.pixels)
                        with T.Else():
                            self._tile(group, vectors, outputs, row, column, rest)

            whole = config.vectors * LANES
            with T.serial(begin, end) as group:
                if groups.count == 1 or groups.last_outputs == whole:
                    tile_of(group, groups.last, groups.last_outputs)
                else:
                    with T.If(group < groups.count - 1):
                        with T.Then():
                            tile_of(group, config.vectors, whole)
                        with T.Else():
                            tile_of(group, groups.last, groups.last_outputs)

    def _tile(
        self, group: Expr, vectors: int, outputs: int, row: Expr, column: Expr, pixels: int
    ) -> None:
        """The sums of one tile, from beginning to end."""
        first = T.bind(group * (self.config.vectors * LANES))
        begin = [T.bind(load(self.offset, first + u * LANES)) for u in range(vectors)]
        sums: Sums = [
            [T.alloc_buffer((LANES,), "int32", scope="local") for _ in range(vectors)]
            for _ in range(pixels)
        ]
        for t in range(pixels):
            for u in range(vectors):
                T.buffer_store(sums[t][u], begin[u], [lanes(0)])
        base = T.bind(self.reading.position(row, column))
        if self.config.method == "picked":
            self._picked(sums, group, base)
        else:
            self._dense(sums, group, base)
        self.finish.write(sums, row * self.reading.columns + column, first, outputs)

    def _picked(self, sums: Sums, group: Expr, base: Expr) -> None:
        """Per block of 64 bytes and quad of a list: every lane picks four of them."""
        pixels, vectors = len(sums), len(sums[0])
        reading, step = self.reading, 2 * BYTES
        origin: Expr = 0
        if vectors < self.config.vectors:  # the last group, behind wider ones
            boundary = self.quads[self.starts[self.groups.count - 1]]
            origin = T.bind(boundary * (step * (self.config.vectors - vectors)))
        start = T.bind(self.starts[group])
        with T.serial(0, self.starts[group + 1] - start) as nth:
            block = T.bind(start + nth)
            at = T.bind(base + self.offsets[block])
            x = [
                T.bind(load_bytes(self.raster, at + t * reading.pitch, reading.active))
                for t in range(pixels)
            ]
            begin = T.bind(self.quads[block])
            stream = T.bind(origin + begin * (step * vectors))
            with T.serial(0, self.quads[block + 1] - begin) as quad:
                where = T.bind(stream + quad * (step * vectors))
                for u in range(vectors):
                    index = T.bind(load_bytes(self.weights, where + u * BYTES))
                    weight = T.bind(load_bytes(self.weights, where + (vectors + u) * BYTES))
                    for t in range(pixels):
                        _add(sums[t][u], pick_bytes(x[t], index), weight)

    def _dense(self, sums: Sums, group: Expr, base: Expr) -> None:
        """Per segment and quad: four bytes of each pixel in all lanes."""
        pixels, vectors = len(sums), len(sums[0])
        reading = self.reading
        rows, columns = reading.window
        down, right = reading.window_steps
        quads = reading.quads
        if reading.by_group:
            per_group = reading.conv.group_out // (self.config.vectors * LANES)
            base = T.bind(base + group // per_group * reading.conv.group_in)
        start = T.bind(group * (rows * columns * quads * BYTES * self.config.vectors))
        with T.grid(rows, columns, quads) as (y, x, quad):
            at = T.bind(base + y * down + x * right + quad * QUAD)
            where = T.bind(start + ((y * columns + x) * quads + quad) * (BYTES * vectors))
            weights = [T.bind(load_bytes(self.weights, where + u * BYTES)) for u in range(vectors)]
            for t in range(pixels):
                four = T.bind(broadcast_quad(self.raster, at + t * reading.pitch))
                for u in range(vectors):
                    _add(sums[t][u], four, weights[u])


def _add(sums: Buffer, x: Expr, weights: Expr) -> None:
    T.buffer_store(sums, dot(sums[lanes(0)], x, weights), [lanes(0)])
