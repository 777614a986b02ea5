"""What the tile instructions do, in loops: kernels on tiles can be tested where there are none."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Buffer, Expr
from nmcompile.kernels.avx512_amx.instructions import REGISTERS, ROWS, Product
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD


class Software:
    """The tiles of one core as arrays; see `nmcompile.kernels.avx512_amx.instructions.Tiles`."""

    def __init__(self, activations: tuple[int, ...], weights: tuple[int, ...], sums: str) -> None:
        """As `Hardware`."""
        self._kinds = dict.fromkeys(range(REGISTERS), sums)
        self._kinds |= dict.fromkeys(activations, "uint8") | dict.fromkeys(weights, "int8")

    def configure(self, pixels: int, depth: int) -> None:
        """See `Tiles`."""
        self._pixels, self._depth = pixels, depth
        self._tiles = {
            tile: T.alloc_buffer((ROWS * self._row(kind),), kind, scope="local")
            for tile, kind in self._kinds.items()
        }

    def release(self) -> None:
        """See `Tiles`."""

    def zero(self, tile: int) -> None:
        """See `Tiles`."""
        array = self._tiles[tile]
        with T.serial(0, self._pixels * LANES) as i:
            T.buffer_store(array, T.Cast(self._kinds[tile], T.int32(0)), [i])

    def load(self, tile: int, buffer: Buffer, start: Expr, pitch: Expr) -> None:
        """See `Tiles`."""
        kind, array = self._kinds[tile], self._tiles[tile]
        rows, columns, size = self._pixels, LANES, 4
        if kind in ("uint8", "int8"):
            rows, columns, size = self._pixels, self._depth, 1
        if kind == "int8":
            rows, columns = self._depth // QUAD, BYTES
        with T.grid(rows, columns) as (row, column):
            value = buffer[start + row * (pitch // size) + column]
            T.buffer_store(array, value, [row * self._row(kind) + column])

    def store(self, tile: int, buffer: Buffer, start: Expr) -> None:
        """See `Tiles`."""
        with T.serial(0, self._pixels * LANES) as i:
            T.buffer_store(buffer, self._tiles[tile][i], [start + i])

    def multiply(self, sums: int, activations: int, weights: int, product: Product) -> None:
        """See `Tiles`."""
        total = self._tiles[sums]
        a, b = self._tiles[activations], self._tiles[weights]
        quads = self._depth // QUAD
        with T.grid(self._pixels, LANES, quads) as (row, column, quad):
            left, right = row * BYTES + quad * QUAD, quad * BYTES + column * QUAD
            if product == "int8":
                terms = [
                    T.Cast("int32", a[left + i]) * T.Cast("int32", b[right + i])
                    for i in range(QUAD)
                ]
            else:
                terms = [_brain(a, left + i) * _brain(b, right + i) for i in (0, 2)]
            place = row * LANES + column
            for term in terms:
                T.buffer_store(total, total[place] + term, [place])

    @staticmethod
    def _row(kind: str) -> int:
        return BYTES if kind in ("uint8", "int8") else LANES


def _brain(buffer: Buffer, at: Expr) -> Expr:
    """The bfloat16 of two bytes as float32."""
    low, high = (T.Cast("uint32", T.Cast("uint8", buffer[at + i])) for i in (0, 1))
    return T.reinterpret("float32", (low << T.uint32(16)) | (high << T.uint32(24)))
