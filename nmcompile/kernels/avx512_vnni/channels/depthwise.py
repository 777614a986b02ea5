"""Depthwise convolution: 64 channels at a time, four rows of a kernel column in each product.

Rows of the input go through a ring of padded rows, 64 bytes a pixel, as they are needed. Of every
column of the ring the rows under a kernel column are interleaved by unpacks, so that a lane holds
one channel's bytes under four kernel rows; all output pixels of a tile that read the column
multiply it by their kernel column's weights.

Where few channels are left, lanes hold several stretches of output rows side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, LONG_ACTIVATIONS, Buffer, Expr, lanes
from nmcompile.kernels.avx512_vnni.channels.frame import (
    Ending,
    declare_ending,
    store_unpacked,
    tasks,
)
from nmcompile.kernels.avx512_vnni.emit import (
    BYTES,
    QUAD,
    bytes_of,
    constant_bytes,
    dot,
    interleave,
    load_bytes,
    pick_bytes,
    spread,
    store_bytes,
)
from nmcompile.kernels.integers import IntegerEpilogue
from nmcompile.kernels.prim_func import PrimFuncBuilder
from nmcompile.kernels.spec import Conv2d

TILE = 4  # output pixels whose 16 accumulators leave registers for a column and its unpacking
# Tiles of kernels with more than four rows are written out longer, and as much narrower.
FEWEST_ROWS = 6  # output rows of a task: above and below them rows are copied twice
MANY_TASKS = 16  # enough for the cores at hand to end together
NARROWEST = 8  # bytes of a stretch of rows in a vector


@dataclass(frozen=True)
class Block:
    """64 channels or what is left of them, and how output rows share their vectors.

    active: output channels.
    width: bytes that each of `stretches` stretches of `rows` output rows has in a vector.
    chunks: tasks that an image is cut into.
    """

    active: int
    width: int
    rows: int
    chunks: int

    @classmethod
    def of(cls, conv: Conv2d, active: int, blocks: int, width: int) -> Block:
        """How to compute `blocks` blocks of `active` channels in `width` bytes."""
        stretches = BYTES // width
        wanted = -(-MANY_TASKS // (conv.batch * blocks))
        chunks = max(1, min(wanted, conv.out_height // (stretches * FEWEST_ROWS)))
        rows = -(-conv.out_height // (stretches * chunks))
        return cls(active, width, rows, -(-conv.out_height // (stretches * rows)))

    @property
    def stretches(self) -> int:
        """Stretches of output rows in one vector."""
        return BYTES // self.width


def width_of_rest(conv: Conv2d, epilogue: IntegerEpilogue) -> int:
    """Bytes of a vector that the channels behind the last whole block take."""
    rest = conv.out_channels % BYTES
    if not rest or epilogue.residual or epilogue.out != "uint8":
        return BYTES
    return max(NARROWEST, 1 << (rest - 1).bit_length())


def kernel_quads(conv: Conv2d) -> int:
    """Products that a kernel column takes: four rows each."""
    return -(-conv.kernel[0] // QUAD)


def emit_depthwise(name: str, conv: Conv2d, x_zero: int, epilogue: IntegerEpilogue) -> object:
    """The TIR function (x, values, offset, scale, steps, [residual], [out]).

    values: int8 (blocks, kernel columns, quads of kernel rows, 4, 16, 4): of `interleave`d channels
        the weights of four rows; offset and scale in the same order (blocks, 4, 16). The last block
        holds `width_of_rest` channels again and again.
    """
    full, rest = divmod(conv.out_channels, BYTES)
    blocks = full + (rest > 0)
    with PrimFuncBuilder(name) as func:
        shape = (conv.batch, conv.in_height, conv.in_width, conv.in_channels)
        x = func.tensor("x", shape, "uint8")
        size = blocks * conv.kernel[1] * kernel_quads(conv) * QUAD * BYTES
        values = func.tensor("values", (size,), "int8")
        out_shape = (conv.batch, conv.out_height, conv.out_width, conv.out_channels)
        ending = declare_ending(func, blocks * BYTES, out_shape, epilogue)
        emitter = _Emitter(conv, x_zero, func.flat(x), values, ending)
        if full:
            emitter.blocks(Block.of(conv, BYTES, full, BYTES), 0, full)
        if rest:
            emitter.blocks(Block.of(conv, rest, 1, width_of_rest(conv, epilogue)), full, 1)
    return func.result()


@dataclass(frozen=True)
class _Place:
    """The output row that is computed: of the first stretch, if there are several."""

    block: Block
    which: Expr
    image: Expr
    row: Expr


class _Emitter:
    def __init__(
        self, conv: Conv2d, x_zero: int, x: Buffer, values: Buffer, ending: Ending
    ) -> None:
        self._conv, self._zero, self._x = conv, x_zero, x
        self._values, self._ending = values, ending
        self._ring_rows = (conv.kernel[0] - 1) * conv.dilation[0] + 1
        reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
        self._ring_width = (conv.out_width - 1) * conv.stride[1] + reach

    def blocks(self, block: Block, first: int, count: int) -> None:
        """Emit the tasks of `count` blocks."""
        conv = self._conv
        work = conv.batch * conv.out_pixels * block.active * count * conv.taps
        with tasks(conv.batch * block.chunks * count, work) as task:
            which = T.bind(task % count + first)
            chunk = T.bind(task // count % block.chunks)
            image = T.bind(task // (count * block.chunks))
            self._task(block, which, image, T.bind(chunk * (block.rows * block.stretches)))

    def _task(self, block: Block, which: Expr, image: Expr, top: Expr) -> None:
        """Emit the output rows of all stretches from `top` on, for one block of channels."""
        conv, count = self._conv, self._ring_rows
        ring = T.alloc_buffer((count * self._ring_width * BYTES,), "uint8", align=BYTES)
        lines = T.alloc_buffer((conv.kernel[0],), "int32", scope="local")
        low, high = self._inner
        with T.serial(0, count) as row, T.serial(0, self._ring_width - (high - low)) as border:
            column = T.Select(border < low, border, border + (high - low))
            at = T.bind((row * self._ring_width + column) * BYTES)
            store_bytes(ring, at, bytes_of(self._zero), BYTES)
        with T.serial(0, T.min(T.int32(block.rows), conv.out_height - top)) as row:
            # Only the first row finds all of the ring without a row it needs.
            kept = T.bind(T.Select(row > 0, T.int32(max(count - conv.stride[0], 0)), T.int32(0)))
            with T.serial(0, count - kept) as new:
                line = T.bind(row * conv.stride[0] + kept + new)
                slot = T.bind(line % count * (self._ring_width * BYTES))
                for stretch in range(block.stretches):
                    source = (top + stretch * block.rows) * conv.stride[0] + line - conv.padding[0]
                    self._copy(block, which, image, source, ring, slot + stretch * block.width)
            for kh in range(conv.kernel[0]):
                line = (row * conv.stride[0] + kh * conv.dilation[0]) % count
                T.buffer_store(lines, line * (self._ring_width * BYTES), [kh])
            starts = [T.bind(lines[kh]) for kh in range(conv.kernel[0])]
            place = _Place(block, which, image, T.bind(top + row))
            pixels = max(1, TILE // kernel_quads(conv))
            full, rest = divmod(conv.out_width, pixels)
            if full:
                with T.serial(0, full) as tile:
                    self._tile(place, ring, starts, T.bind(tile * pixels), pixels)
            if rest:
                self._tile(place, ring, starts, T.int32(full * pixels), rest)

    @property
    def _inner(self) -> tuple[int, int]:
        """Columns of the ring that lie in the image."""
        left = min(self._conv.padding[1], self._ring_width)
        return left, max(left, min(self._conv.padding[1] + self._conv.in_width, self._ring_width))

    def _copy(
        self, block: Block, which: Expr, image: Expr, row: Expr, ring: Buffer, at: Expr
    ) -> None:
        """Emit the copy of one input row to the ring, the zero point where there is none."""
        conv, (low, high) = self._conv, self._inner
        row = T.bind(row)
        with T.If(tirx.all(row >= 0, row < conv.in_height)):
            with T.Then():
                line = (image * conv.in_height + row) * conv.in_width
                start = T.bind(
                    (line + (low - conv.padding[1])) * conv.in_channels
                    + which * (BYTES // conv.group_out)
                )
                with T.serial(0, high - low) as i:
                    value = self._pixel(block, start + i * conv.in_channels)
                    store_bytes(ring, at + (low + i) * BYTES, value, block.width)
            with T.Else(), T.serial(0, high - low) as i:
                value = T.Shuffle([bytes_of(self._zero)], list(range(block.width)))
                store_bytes(ring, at + (low + i) * BYTES, value, block.width)

    def _pixel(self, block: Block, start: Expr) -> Expr:
        """What the channels of a block read of one pixel, as `block.width` bytes."""
        repeat = self._conv.group_out
        if repeat == 1:
            return load_bytes(self._x, start, block.active, block.width)
        value = load_bytes(self._x, start, -(-block.active // repeat))
        picked = pick_bytes(value, constant_bytes([i // repeat for i in range(BYTES)]))
        return T.Shuffle([picked], list(range(block.width)))

    def _tile(
        self, place: _Place, ring: Buffer, starts: Sequence[Expr], column: Expr, count: int
    ) -> None:
        """Emit `count` output pixels of a row."""
        conv, quads = self._conv, kernel_quads(self._conv)
        readers: dict[int, list[tuple[int, int]]] = {}
        for t in range(count):
            for kw in range(conv.kernel[1]):
                readers.setdefault(t * conv.stride[1] + kw * conv.dilation[1], []).append((t, kw))
        first = T.bind(place.which * BYTES)
        offsets = [T.bind(self._ending.offset[lanes(first + v)]) for v in range(0, BYTES, LANES)]
        sums = [list(offsets) for _ in range(count)]
        zero = T.broadcast(T.int8(0), BYTES)
        weights = T.bind(first * (conv.kernel[1] * quads * QUAD))
        start = T.bind(column * (conv.stride[1] * BYTES))
        for at, pairs in sorted(readers.items()):
            for quad in range(quads):
                under = [*starts[quad * QUAD : (quad + 1) * QUAD]]
                rows = [T.bind(load_bytes(ring, line + start + at * BYTES)) for line in under]
                parts = interleave(rows + [zero] * (QUAD - len(rows)))
                for t, kw in pairs:
                    for v, part in enumerate(parts):
                        tap = ((kw * quads + quad) * QUAD + v) * BYTES
                        weight = load_bytes(self._values, weights + tap)
                        sums[t][v] = T.bind(dot(sums[t][v], part, weight))
        self._finish(place, column, sums)

    def _finish(self, place: _Place, column: Expr, sums: list[list[Expr]]) -> None:
        """Emit what becomes of the sums of a tile."""
        if self._ending.requantiser.epilogue.activation.kind not in LONG_ACTIVATIONS:
            for t, pixel in enumerate(sums):
                self._write(place, T.bind(column + t), pixel)
            return
        kept = T.alloc_buffer((len(sums) * BYTES,), "int32", scope="local")
        for t, pixel in enumerate(sums):
            for v, part in enumerate(pixel):
                T.buffer_store(kept, part, [lanes(t * BYTES + v * LANES)])
        with T.serial(0, len(sums)) as t:
            pixel = [T.bind(kept[lanes(t * BYTES + v)]) for v in range(0, BYTES, LANES)]
            self._write(place, T.bind(column + t), pixel)

    def _write(self, place: _Place, column: Expr, sums: Sequence[Expr]) -> None:
        conv, ending, block = self._conv, self._ending, place.block
        first = T.bind(place.which * BYTES)

        def at(stretch: int) -> tuple[Expr, Expr]:
            row = T.bind(place.row + stretch * block.rows)
            pixel = (place.image * conv.out_height + row) * conv.out_width + column
            return row, T.bind(pixel * conv.out_channels + first)

        added: list[Expr | None] = [None] * QUAD
        if ending.residual is not None:
            added = [*spread(T.bind(load_bytes(ending.residual, at(0)[1], block.active)))]
        values = [
            ending.requantiser.real(
                total, T.bind(ending.scale[lanes(first + v * LANES)]), residual
            )
            for v, (total, residual) in enumerate(zip(sums, added, strict=True))
        ]  # fmt: skip
        if block.stretches == 1:
            store_unpacked(ending, at(0)[1], values, block.active)
            return
        packed = ending.requantiser.pack_unpacked(values)
        for stretch in range(block.stretches):
            row, target = at(stretch)
            begin = stretch * block.width
            part = T.Shuffle([packed], list(range(begin, begin + block.width)))
            with T.If(row < conv.out_height), T.Then():
                store_bytes(ending.out, target, part, block.active)
