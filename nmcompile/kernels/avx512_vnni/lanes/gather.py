"""Bringing together the bytes that the outputs of a 1xN list read, so that they follow each other.

Every pixel under a block of output pixels is gathered once per list, whatever the kernel: its
positions are then shifts of whole pixels. A piece of 64 kept bytes is made of the few vectors of
source bytes that hold them, each permuted and merged where it is meant, and stored as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Buffer, Expr
from nmcompile.kernels.avx512_vnni.emit import BYTES, load_bytes, pick_bytes, store_bytes
from nmcompile.kernels.avx512_vnni.lanes.inner_loops import Pixels, Window
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.spec import Conv2d

MOST_TOGETHER = 8  # pixels of a row that are gathered together


@dataclass(frozen=True)
class Axis:
    """Rows or columns: how source pixels under output pixels are gathered.

    Under a kernel of one, only the pixels that outputs read are.

    step: source pixels from one gathered to the next.
    stride: gathered pixels from one output to the next.
    dilation: gathered pixels from one kernel position to the next.
    span: gathered pixels under one output.
    """

    step: int
    stride: int
    dilation: int
    span: int

    @classmethod
    def of(cls, conv: Conv2d, axis: int) -> Axis:
        """Of one axis of a convolution."""
        if conv.kernel[axis] == 1:
            return cls(conv.stride[axis], 1, 1, 1)
        span = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1
        return cls(1, conv.stride[axis], conv.dilation[axis], span)

    def count(self, outputs: Expr) -> Expr:
        """Gathered pixels under so many outputs."""
        return (outputs - 1) * self.stride + self.span


class BlockConfig(Protocol):
    """Output pixels of a block: rows, and tiles of so many pixels of each."""

    @property
    def pixels(self) -> int:
        """Of a tile."""

    @property
    def rows(self) -> int:
        """Of a block."""

    @property
    def tiles(self) -> int:
        """Of a row of a block."""


@dataclass(frozen=True)
class Lists:
    """What is gathered, by list; see `PackedWeights`."""

    starts: Buffer
    sources: Buffer
    offsets: Buffer
    index: Buffer


class Gathered:
    """The gathered pixels of one block of output pixels; `pitch` bytes from one to the next.

    Pieces are stored whole: with a pitch of fewer bytes than one, lists have a single piece.
    """

    def __init__(
        self, reading: Reading, config: BlockConfig, lists: Lists, source: Buffer, pitch: int
    ) -> None:
        self._reading, self._lists = reading, lists
        self._source, self._pitch = source, pitch
        self._rows, self._columns = Axis.of(reading.conv, 0), Axis.of(reading.conv, 1)
        _, rows, columns = reading.grid
        self._width = self._columns.count(min(columns, config.tiles * config.pixels))
        height = self._rows.count(min(rows, config.rows))
        narrowest = columns % (config.tiles * config.pixels) or self._width
        fitting = [n for n in range(1, MOST_TOGETHER + 1) if n <= self._columns.count(narrowest)]
        self._step = min(fitting, key=lambda n: -(-self._width // n) * n - n / 2)
        # Pieces are stored whole, whatever the pitch.
        size = height * self._width * pitch + BYTES
        self.bytes = T.alloc_buffer((size,), "uint8", align=BYTES)

    def fill(self, which: Expr, at: Expr, rows: Expr, columns: Expr) -> None:
        """Gather for list `which` what lies under rows x columns output pixels.

        `at` is the first byte under the first of them.
        """
        reading, lists = self._reading, self._lists
        channels = reading.conv.in_channels
        down = self._rows.step * reading.width * channels
        right = self._columns.step * channels
        active = BYTES if reading.copied else min(BYTES, channels)
        start = T.bind(lists.starts[which])
        high, wide = self._rows.count(rows), T.bind(self._columns.count(columns))
        with T.serial(0, lists.starts[which + 1] - start) as nth:
            piece = T.bind(start + nth)
            index = T.bind(load_bytes(lists.index, piece * (2 * BYTES)))
            block_of = T.bind(load_bytes(lists.index, piece * (2 * BYTES) + BYTES))
            source = T.bind(lists.sources[piece])
            count = T.bind(lists.sources[piece + 1] - source)
            with T.grid(high, T.ceildiv(wide, self._step)) as (y, step):
                # The last step ends with the row: it may gather some pixels once more.
                x = T.bind(T.min(step * self._step, wide - self._step))
                line = T.bind(at + y * down + x * right)
                merged = [
                    T.alloc_buffer((BYTES,), "int8", scope="local") for _ in range(self._step)
                ]
                whole = T.ramp(0, 1, BYTES)
                for value in merged:
                    T.buffer_store(value, T.broadcast(T.int8(0), BYTES), [whole])
                with T.serial(0, count) as block:
                    first = T.bind(line + lists.offsets[source + block])
                    meant = block_of == T.broadcast(T.Cast("int8", block), BYTES)
                    for p, value in enumerate(merged):
                        vector = load_bytes(self._source, first + p * right, active)
                        picked = pick_bytes(vector, index)
                        T.buffer_store(value, T.Select(meant, picked, value[whole]), [whole])
                target = T.bind(nth * BYTES + (y * self._width + x) * self._pitch)
                for p, value in enumerate(merged):
                    store_bytes(self.bytes, target + p * self._pitch, value[whole], BYTES)

    def at(self, row: Expr, column: Expr) -> Expr:
        """Where what lies under one output pixel of the block begins."""
        place = row * self._rows.stride * self._width + column * self._columns.stride
        return place * self._pitch

    @property
    def step(self) -> int:
        """Bytes from one output pixel to the next in its row."""
        return self._columns.stride * self._pitch

    @property
    def window_steps(self) -> tuple[int, int]:
        """Bytes from one position of the kernel to the next, down and to the right."""
        down = self._rows.dilation * self._width * self._pitch
        return down, self._columns.dilation * self._pitch

    def pixels(self, row: Expr, column: Expr, pixels: int, lines: int) -> Pixels:
        """The tile of so many pixels of so many rows that begins with this one of the block."""
        down = self._rows.stride * self._width * self._pitch
        offsets = Pixels.offsets_of(pixels, self.step, lines, down)
        return Pixels(self.bytes, self.at(row, column), offsets)

    def window(self, quads: Expr) -> Window:
        """The kernel's positions, each a run of `quads`."""
        return Window(*self._reading.conv.kernel, *self.window_steps, quads)
