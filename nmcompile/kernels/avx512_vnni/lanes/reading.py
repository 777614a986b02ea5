"""Where the bytes lie that a convolution multiplies.

A kernel reads a raster of pixels, each of C channel bytes: the input itself, or a copy of it with
borders that are filled with the zero point. Under an output pixel lie segments, runs of bytes that
follow each other: a row of the kernel (kw * C bytes), or one kernel position where a dilation or a
group parts them. The weight of an output, in the order (kh, kw, in), is its segments one after the
other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Buffer, Expr
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD, load_bytes, store_bytes
from nmcompile.kernels.spec import Conv2d


@dataclass(frozen=True)
class Reading:
    """The raster of one convolution.

    by_group: whether an output reads its own group's channels only, instead of all.
    copied: whether the raster is a copy; it may be read `BYTES` past its end.
    """

    conv: Conv2d
    by_group: bool
    copied: bool

    @classmethod
    def of(cls, conv: Conv2d, *, quads: bool) -> Reading:
        """How to read a convolution, in whole quads or in vectors of `BYTES`.

        Without a copy nothing outside of the input is read.
        """
        reading = cls(conv, quads and conv.groups > 1, any(conv.padding))
        ragged = quads and reading.segment % QUAD != 0
        return cls(conv, reading.by_group, reading.copied or ragged)

    @property
    def height(self) -> int:
        """Rows of the raster."""
        return self.conv.in_height + self.conv.padding[0] + self.conv.padding[2]

    @property
    def width(self) -> int:
        """Pixels of one row of the raster."""
        return self.conv.in_width + self.conv.padding[1] + self.conv.padding[3]

    @property
    def size(self) -> int:
        """Bytes of the raster, without what may be read past its end."""
        return self.conv.batch * self.height * self.width * self.conv.in_channels

    @property
    def _by_row(self) -> bool:
        _, columns = self.conv.kernel
        return not self.by_group and (columns == 1 or self.conv.dilation[1] == 1)

    @property
    def segment(self) -> int:
        """Bytes of one segment."""
        if self.by_group:
            return self.conv.group_in
        return self.conv.in_channels * (self.conv.kernel[1] if self._by_row else 1)

    @property
    def quads(self) -> int:
        """Quads of one segment."""
        return -(-self.segment // QUAD)

    @property
    def window(self) -> tuple[int, int]:
        """Segments of one output: rows and columns of them."""
        return self.conv.kernel[0], 1 if self._by_row else self.conv.kernel[1]

    @property
    def window_steps(self) -> tuple[int, int]:
        """Bytes from one segment to the next, down and to the right."""
        down = self.conv.dilation[0] * self.width * self.conv.in_channels
        return down, self.conv.dilation[1] * self.conv.in_channels

    @property
    def segments(self) -> list[int]:
        """Where the segments begin, counted from the first."""
        down, right = self.window_steps
        rows, columns = self.window
        return [row * down + column * right for row in range(rows) for column in range(columns)]

    @property
    def active(self) -> int:
        """Bytes of a vector that may be read: fewer than 64 where a segment has no more."""
        return BYTES if self.copied else min(BYTES, self.segment)

    @property
    def pitch(self) -> int:
        """Bytes from one output pixel to the next in its row."""
        return self.conv.stride[1] * self.conv.in_channels

    @property
    def down(self) -> int:
        """Bytes from one row of output pixels to the next."""
        return self.conv.stride[0] * self.width * self.conv.in_channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """Images, rows and columns of output pixels; one row where all pixels follow each other."""
        conv = self.conv
        if conv.is_pointwise:
            return 1, 1, conv.batch * conv.out_pixels
        return conv.batch, conv.out_height, conv.out_width

    def position(self, image: Expr, row: Expr, column: Expr) -> Expr:
        """The first byte under one output pixel of the grid."""
        image_bytes = self.height * self.width * self.conv.in_channels
        return image * image_bytes + row * self.down + column * self.pitch

    def raster(self, x: Buffer, zero: int) -> Buffer:
        """The flat raster over the flat input; emits the copy, borders filled with `zero`."""
        if not self.copied:
            return x
        raster = T.alloc_buffer((self.size + BYTES,), "uint8", align=BYTES)
        conv = self.conv
        top, left, _, right = conv.padding
        line = self.width * conv.in_channels
        inner = conv.in_width * conv.in_channels
        with T.parallel(0, conv.batch * self.height) as row:
            y = T.bind(row % self.height - top)
            at = T.bind(row * line)
            with T.If(tirx.all(y >= 0, y < conv.in_height)):
                with T.Then():
                    source = T.bind((row // self.height * conv.in_height + y) * inner)
                    _fill(raster, at, left * conv.in_channels, zero)
                    start = T.bind(at + left * conv.in_channels)
                    copy_bytes(x, source, raster, start, inner)
                    _fill(raster, start + inner, right * conv.in_channels, zero)
                with T.Else():
                    _fill(raster, at, line, zero)
        return raster


def copy_bytes(source: Buffer, start: Expr, target: Buffer, at: Expr, count: int) -> None:
    """Copy so many bytes."""
    full, rest = divmod(count, BYTES)
    if full:
        with T.serial(0, full) as v:
            store_bytes(target, at + v * BYTES, load_bytes(source, start + v * BYTES), BYTES)
    if rest:
        end = full * BYTES
        store_bytes(target, at + end, load_bytes(source, start + end, rest), rest)


def _fill(target: Buffer, at: Expr, count: int, byte: int) -> None:
    signed = byte - 256 if byte > 127 else byte
    value = T.broadcast(T.int8(signed), BYTES)
    full, rest = divmod(count, BYTES)
    if full:
        with T.serial(0, full) as v:
            store_bytes(target, at + v * BYTES, value, BYTES)
    if rest:
        store_bytes(target, at + full * BYTES, value, rest)


def picked_pixels(x: Buffer, conv: Conv2d) -> Buffer:
    """The pixels that a 1x1 convolution with a stride reads, one after the other."""
    size = conv.in_channels
    picked = T.alloc_buffer((conv.batch * conv.out_pixels * size + BYTES,), "uint8", align=BYTES)
    with T.parallel(0, conv.batch * conv.out_height) as row:
        image, line = T.bind(row // conv.out_height), T.bind(row % conv.out_height)
        first = (image * conv.in_height + line * conv.stride[0]) * (conv.in_width * size)
        with T.serial(0, conv.out_width) as column:
            source = T.bind(first + column * (conv.stride[1] * size))
            copy_bytes(x, source, picked, T.bind((row * conv.out_width + column) * size), size)
    return picked


def unstrided(conv: Conv2d) -> tuple[Conv2d, Conv2d | None]:
    """The convolution to compute, and the one whose pixels are brought together for it.

    That is a 1x1 convolution with a stride: afterwards its pixels follow each other, whatever the
    row, and fill tiles.
    """
    if conv.kernel != (1, 1) or conv.stride == (1, 1) or any(conv.padding):
        return conv, None
    return replace(conv, in_height=conv.out_height, in_width=conv.out_width, stride=(1, 1)), conv
