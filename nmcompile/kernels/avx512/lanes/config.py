"""Sizes of a product with outputs in lanes."""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.avx512.emit import LANES


@dataclass(frozen=True)
class LanesConfig:
    """Tile sizes.

    rows: of x that share each loaded weight.
    vectors: of 16 outputs computed together: as many streams of weights.
    """

    rows: int
    vectors: int

    @property
    def width(self) -> int:
        """Outputs computed together."""
        return self.vectors * LANES
