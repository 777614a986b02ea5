"""Sums in registers: rows, with outputs in lanes."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from nmcompile.kernels.avx512.emit import LANES, Expr, lanes


class Sums:
    """Registers for rows x vectors of 16 outputs."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows, self.vectors = rows, vectors
        self._buffer = T.alloc_buffer((rows * vectors * LANES,), scope="local")

    def _at(self, r: int, v: int) -> Expr:
        return lanes((r * self.vectors + v) * LANES)

    def get(self, r: int, v: int) -> Expr:
        """Outputs of vector v of row r."""
        return self._buffer[self._at(r, v)]

    def set(self, r: int, v: int, value: Expr) -> None:
        """Replace them."""
        T.buffer_store(self._buffer, value, [self._at(r, v)])

    def add(self, r: int, v: int, product: Expr) -> None:
        """Add to them."""
        self.set(r, v, self.get(r, v) + product)
