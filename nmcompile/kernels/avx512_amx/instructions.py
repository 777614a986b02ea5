"""The tile instructions of AMX, the only place that emits them.

Eight tiles of up to 16 rows of 64 bytes. A product adds to a tile of sums, rows of 16 dwords, the
rows of a tile of activations times the columns of a tile of weights: row k of the weights holds,
for each of 16 outputs, the four bytes that meet bytes 4 k to 4 k + 3 of a row of activations.
Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from typing import Literal, Protocol

from tvm import tirx
from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import Buffer, Expr
from nmcompile.kernels.avx512_vnni.emit import BYTES, constant_bytes, store_bytes

SUMS = 4  # tiles 0 to 3
REGISTERS = 8
ROWS = 16  # most of a tile

Product = Literal["int8", "bfloat16"]
"""What is multiplied: u8 activations and s8 weights with int32 sums, or bfloat16 with float32."""


class Tiles(Protocol):
    """What emits the instructions, or something else that does the same."""

    def configure(self, pixels: int, depth: int) -> None:
        """Set the shapes of all tiles of the core, before any other instruction.

        Tiles of sums have `pixels` rows of 64 bytes, those of activations `pixels` rows of `depth`
        bytes, those of weights depth / 4 rows of 64 bytes.
        """

    def release(self) -> None:
        """Give the tiles up, after which nothing has to be kept where a thread is switched."""

    def zero(self, tile: int) -> None:
        """Set a tile to zeros."""

    def load(self, tile: int, buffer: Buffer, start: Expr, pitch: Expr) -> None:
        """Load rows of a flat buffer that begin `pitch` bytes apart."""

    def store(self, tile: int, buffer: Buffer, start: Expr) -> None:
        """Store a tile of sums to rows of 16 elements of a flat buffer of dwords."""

    def multiply(self, sums: int, activations: int, weights: int, product: Product) -> None:
        """Add products to a tile of sums."""


class Hardware:
    """The instructions themselves."""

    def __init__(self, activations: tuple[int, ...], weights: tuple[int, ...], sums: str) -> None:
        """Which tiles hold activations and weights, and the element type of sums."""
        self._activations, self._weights = activations, weights

    def configure(self, pixels: int, depth: int) -> None:
        """See `Tiles`."""
        widths, heights = [BYTES] * REGISTERS, [pixels] * REGISTERS
        for tile in self._activations:
            widths[tile] = depth
        for tile in self._weights:
            heights[tile] = depth // 4
        palette = [1, *[0] * 15]
        columns = [part for width in widths for part in (width, 0)] + [0] * 16
        settings = T.alloc_buffer((BYTES,), "int8", scope="local", align=BYTES)
        store_bytes(settings, 0, constant_bytes([*palette, *columns, *heights, *[0] * 8]), BYTES)
        self._call("ldtilecfg", tirx.op.address_of(settings[0]))

    def release(self) -> None:
        """See `Tiles`."""
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        """See `Tiles`."""
        self._call("tilezero", T.int8(tile))

    def load(self, tile: int, buffer: Buffer, start: Expr, pitch: Expr) -> None:
        """See `Tiles`."""
        address = tirx.op.address_of(buffer[start])
        self._call("tileloadd64", T.int8(tile), address, T.Cast("int64", pitch))

    def store(self, tile: int, buffer: Buffer, start: Expr) -> None:
        """See `Tiles`."""
        address = tirx.op.address_of(buffer[start])
        self._call("tilestored64", T.int8(tile), address, T.int64(BYTES))

    def multiply(self, sums: int, activations: int, weights: int, product: Product) -> None:
        """See `Tiles`."""
        name = "tdpbusd" if product == "int8" else "tdpbf16ps"
        self._call(name, *map(T.int8, (sums, activations, weights)))

    @staticmethod
    def _call(name: str, *arguments: Expr) -> None:
        T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments))


def hold_whole(buffer: Buffer) -> Buffer:
    """Keep TVM from making a buffer smaller; for every buffer whose rows are loaded or stored.

    Where only the address of an element is taken, it counts as the only one that is used.
    """
    for element in (0, int(buffer.shape[0]) - 1):
        T.evaluate(buffer[element])
    return buffer
