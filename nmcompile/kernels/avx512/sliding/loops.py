"""Sliding a window over one channel: the inner loops of depthwise convolution and pooling.

Sums of several output rows are kept in registers, so that each input vector is loaded once for all
of them; what a load needs beside the 16 floats is known when the code is written. Two sources:

1. the input itself, where windows are small: vectors that a border cuts are masked, lines outside
   the image left out, and strides taken apart by shuffles;
2. a copy of the channel with its borders, one plane per column phase (column modulo stride).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr, load_between, splat
from nmcompile.kernels.avx512.staging import copy_row, fill_row
from nmcompile.kernels.spec import Conv2d, Pool2d

MOST_ROWS = 8  # output rows whose sums are in registers together
MOST_STEPS = 128  # vectors added or joined in one block, which are written out
TALL_ROWS = 4  # output rows of a block whose lines are looped over; windows are taller
MOST_TAPS = 25  # of a window that reads the input itself: its borders are written out too
MOST_STRIDE = 4

Step = Callable[[Expr, Expr, Expr, int], Expr]
Join = Callable[[Sequence[Expr]], Expr]
Finish = Callable[[Expr, Expr, Expr, int], None]


@dataclass(frozen=True)
class Window:
    """Geometry of a window over one channel; `top` and `left` are padding in pixels."""

    in_height: int
    in_width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int

    @classmethod
    def of(cls, spec: Conv2d | Pool2d) -> Window:
        """The window of an operator."""
        top, left, _, _ = spec.padding
        return cls(
            spec.in_height, spec.in_width, spec.out_height, spec.out_width,
            spec.kernel, spec.stride, spec.dilation, top, left,
        )  # fmt: skip

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_tall(self) -> bool:
        """Whether most lines under a block of rows are read by all of these."""
        return self.stride[0] == self.dilation[0] == 1 and self.kernel[0] > TALL_ROWS


class Source(ABC):
    """Where the vectors under a window come from.

    lanes: of a vector; 8 for images that are no wider, where 512-bit operations may cost twice.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.lanes = LANES // 2 if window.out_width <= LANES // 2 else LANES

    def slide(self, start: float | Expr, step: Step, finish: Finish) -> None:
        """For every output vector: acc = step(acc, input, kh, kw) over the window, then finish.

        `finish(acc, row, column, active)` gets the first `active` lanes for the output pixels of
        `row` from `column` on.
        """
        if self._loops_lines:
            self._slide_lines(start, step, finish)
            return
        for first, count in self._blocks(self._rows(self.window.taps)):
            for column, active in self._columns():
                sums = [splat(start, self.lanes)] * count
                for line, readers, done in self._lines(count):
                    for kw, vector in self._line(first, line, column).items():
                        for row, kh in readers:
                            sums[row] = T.bind(step(sums[row], vector, kh, kw))
                    for row in done:
                        finish(sums[row], first + row, column, active)

    def _slide_lines(self, start: float | Expr, step: Step, finish: Finish) -> None:
        """The same with a loop over the lines that all rows of a block read."""
        height, lanes = self.window.kernel[0], self.lanes
        for first, count in self._blocks(self._most(TALL_ROWS)):
            for column, active in self._columns():
                sums = T.alloc_buffer((count * lanes,), scope="local")

                def at(row: int) -> Expr:
                    return T.ramp(row * lanes, 1, lanes)

                def add(line: Expr, rows: range, first: Expr = first, column: Expr = column,
                        sums: Buffer = sums) -> None:  # fmt: skip
                    for kw, vector in self._line(first, line, column).items():
                        for row in rows:
                            value = step(sums[at(row)], vector, line - row, kw)
                            T.buffer_store(sums, value, [at(row)])

                for row in range(count):
                    T.buffer_store(sums, splat(start, lanes), [at(row)])
                for line in range(count - 1):
                    add(line, range(line + 1))
                with T.serial(0, height - count + 1) as index:
                    add(T.bind(index + (count - 1)), range(count))
                for line in range(height, height + count - 1):
                    add(line, range(line - height + 1, count))
                for row in range(count):
                    finish(T.bind(sums[at(row)]), first + row, column, active)

    def join(self, empty: float, join: Join, finish: Finish) -> None:
        """For every output vector: join what joining each line under the window gives, then finish.

        `join` takes at least one vector and does not mind their order; a window that lies outside
        the image altogether gives `empty`. A line is joined once for all the windows that read it.
        """
        height, width = self.window.kernel
        for first, count in self._blocks(self._rows(height + width * self.window.stride[0])):
            for column, active in self._columns():
                lines: list[list[Expr]] = [[] for _ in range(count)]
                for line, readers, done in self._lines(count):
                    vectors = list(self._line(first, line, column).values())
                    if vectors:
                        joined = T.bind(join(vectors))
                        for row, _ in readers:
                            lines[row].append(joined)
                    for row in done:
                        found = join(lines[row]) if lines[row] else splat(empty, self.lanes)
                        finish(T.bind(found), first + row, column, active)

    @property
    def _loops_lines(self) -> bool:
        """Whether sums are made in a loop over lines, and not written out."""
        return False

    @abstractmethod
    def _inside(self, first: int, count: int) -> bool:
        """Whether a block of output rows reads no line outside."""

    @abstractmethod
    def _whole(self, column: int) -> bool:
        """Whether no vector under the output pixels from `column` on is cut by a border."""

    @abstractmethod
    def _line(self, first: Expr, line: Expr, column: Expr) -> dict[int, Expr]:
        """Vectors by kernel column: `line` counts from the first of the block; {} if outside."""

    def _blocks(self, rows: int) -> Iterator[tuple[Expr, int]]:
        """Blocks of so many output rows, first row and count; those inside as one loop."""
        height = self.window.out_height
        blocks = [(first, min(rows, height - first)) for first in range(0, height, rows)]

        def alike(block: tuple[int, int]) -> bool:
            return self._inside(*block) and block[1] == rows

        for same, found in itertools.groupby(blocks, alike):
            run = list(found)
            if same and len(run) > 1:
                with T.serial(0, len(run)) as index:
                    yield T.bind(index * rows + run[0][0]), rows
            else:
                yield from run

    def _columns(self) -> Iterator[tuple[Expr, int]]:
        """First output columns of vectors and how many count; those not cut as one loop."""
        width, lanes = self.window.out_width, self.lanes

        def alike(column: int) -> bool:
            return self._whole(column) and column + lanes <= width

        for same, found in itertools.groupby(range(0, width, lanes), alike):
            run = list(found)
            if same and len(run) > 1:
                with T.serial(0, len(run)) as index:
                    yield T.bind(index * lanes + run[0]), lanes
            else:
                yield from ((column, min(lanes, width - column)) for column in run)

    def _rows(self, steps: int) -> int:
        """Output rows of a block of so many steps each."""
        return self._most(min(MOST_ROWS, max(1, MOST_STEPS // steps)))

    def _most(self, rows: int) -> int:
        """So many output rows, or a few less such that few are left over."""
        height = self.window.out_height
        most = min(rows, height)
        return max((n for n in range(most // 2 + 1, most + 1) if height % n == 0), default=most)

    def _lines(self, count: int) -> Iterator[tuple[int, list[tuple[int, int]], list[int]]]:
        """The lines under a block of output rows: which rows read each, at which row of the window.

        The third field lists the output rows that read no line behind it.
        """
        window = self.window
        height, stride, dilation = window.kernel[0], window.stride[0], window.dilation[0]
        for line in range((count - 1) * stride + (height - 1) * dilation + 1):
            tops = [(line - kh * dilation, kh) for kh in range(height)]
            readers = [
                (top // stride, kh)
                for top, kh in tops
                if top % stride == 0 and 0 <= top < count * stride
            ]
            if readers:
                yield line, readers, [row for row, kh in readers if kh == height - 1]


class _Input(Source):
    """The input itself."""

    def __init__(self, window: Window, x: Buffer, start: Expr, fill: float) -> None:
        super().__init__(window)
        self._x, self._start, self._fill = x, start, fill
        # Kernel columns that the same vectors hold, by the first of these floats.
        self._shared: dict[int, list[int]] = {}
        for kw in range(window.kernel[1]):
            shift = kw * window.dilation[1]
            self._shared.setdefault(shift - shift % window.stride[1], []).append(kw)

    def _inside(self, first: int, count: int) -> bool:
        window = self.window
        top = first * window.stride[0] - window.top
        reach = (count - 1) * window.stride[0] + (window.kernel[0] - 1) * window.dilation[0]
        return top >= 0 and top + reach < window.in_height

    def _whole(self, column: int) -> bool:
        return all(
            low <= 0 and high >= self.lanes
            for shift, columns in self._shared.items()
            for low, high in self._valid(column, shift, columns)
        )

    def _valid(self, column: int, shift: int, columns: list[int]) -> list[tuple[int, int]]:
        """Lanes [low, high) of each vector that lie in the image."""
        begin = column * self.window.stride[1] + shift - self.window.left
        starts = range(begin, begin + self._floats(shift, columns), self.lanes)
        return [(-at, self.window.in_width - at) for at in starts]

    def _floats(self, shift: int, columns: list[int]) -> int:
        last = max(columns) * self.window.dilation[1] - shift
        return (self.lanes - 1) * self.window.stride[1] + last + 1

    def _line(self, first: Expr, line: Expr, column: Expr) -> dict[int, Expr]:
        window, lanes, stride = self.window, self.lanes, self.window.stride[1]
        top = first * window.stride[0] + (line - window.top)
        if isinstance(first, int) and not 0 <= top < window.in_height:
            return {}
        row = self._start + top * window.in_width - window.left
        found = {}
        for shift, columns in self._shared.items():
            if isinstance(column, int):
                valid = self._valid(column, shift, columns)
            else:
                valid = [(0, lanes)] * -(-self._floats(shift, columns) // lanes)
            begin = T.bind(row + (column * stride + shift))
            vectors = [
                T.bind(load_between(self._x, begin + index * lanes, low, high, lanes, self._fill))
                for index, (low, high) in enumerate(valid)
            ]
            for kw in columns:
                offset = kw * window.dilation[1] - shift
                order = [lane * stride + offset for lane in range(lanes)]
                found[kw] = vectors[0] if stride == 1 else T.bind(T.Shuffle(vectors, order))
        return found


class _Planes(Source):
    """A copy, `fill` outside the image."""

    def __init__(self, window: Window, x: Buffer, start: Expr, fill: float) -> None:
        super().__init__(window)
        self._rows_in = (
            (window.out_height - 1) * window.stride[0]
            + (window.kernel[0] - 1) * window.dilation[0]
            + 1
        )
        # Every vector stays inside.
        reach = (window.kernel[1] - 1) * window.dilation[1] // window.stride[1]
        self._width = -(-window.out_width // self.lanes) * self.lanes + reach
        shifts = {kw * window.dilation[1] % window.stride[1] for kw in range(window.kernel[1])}
        self._phases = sorted(shifts)
        size = len(self._phases) * self._rows_in * self._width
        self._planes = T.alloc_buffer((size,), align=64)
        self._copy(x, start, fill)

    @property
    def _loops_lines(self) -> bool:
        return self.window.is_tall

    def _copy(self, x: Buffer, start: Expr, fill: float) -> None:
        window, stride = self.window, self.window.stride[1]
        for index, phase in enumerate(self._phases):
            low = max(0, -((phase - window.left) // stride))
            high = min(self._width, (window.in_width - 1 - phase + window.left) // stride + 1)
            with T.serial(0, self._rows_in) as row:
                source = T.bind(row - window.top)
                at = T.bind((index * self._rows_in + row) * self._width)
                fill_row(self._planes, at, self._width, fill)
                with T.If(tirx.all(source >= 0, source < window.in_height)):
                    with T.Then():
                        begin = start + source * window.in_width + (phase - window.left)
                        begin = begin + low * stride
                        copy_row(x, begin, stride, self._planes, at + low, high - low)

    def _inside(self, first: int, count: int) -> bool:
        return True

    def _whole(self, column: int) -> bool:
        return True

    def _line(self, first: Expr, line: Expr, column: Expr) -> dict[int, Expr]:
        window, found = self.window, {}
        for kw in range(window.kernel[1]):
            shift = kw * window.dilation[1]
            plane = self._phases.index(shift % window.stride[1])
            row = first * window.stride[0] + (plane * self._rows_in + line)
            at = row * self._width + column + shift // window.stride[1]
            found[kw] = T.bind(load_between(self._planes, at, 0, self.lanes, self.lanes, 0.0))
        return found


def source_of(window: Window, x: Buffer, start: Expr, fill: float) -> Source:
    """The vectors of one channel, which begins at `start` in the flat input.

    `fill` is what windows find outside the image; lines that are outside altogether may be left
    out, so it has to be what changes no sum.
    """
    small = window.taps <= MOST_TAPS and window.stride[1] <= MOST_STRIDE
    return (_Input if small else _Planes)(window, x, start, fill)
