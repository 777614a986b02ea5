"""Sizes of a product with outputs in lanes."""

from __future__ import annotations

from dataclasses import dataclass

from nmcompile.kernels.avx512.emit import LANES

QUARTER = 4  # lanes of 128 bits
WORD = 32  # bits of a lane's positions


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


@dataclass(frozen=True)
class Picking:
    """How an N:M pattern becomes slots of 16 inputs."""

    n: int
    m: int

    @property
    def reach(self) -> int:
        """Inputs among which a lane picks."""
        return QUARTER if self.m <= QUARTER else LANES

    @property
    def bits(self) -> int:
        """Of a position."""
        return (self.reach - 1).bit_length()

    @property
    def slots(self) -> int:
        """Of 16 inputs."""
        return LANES // self.m * self.n

    @property
    def units(self) -> int:
        """Times 16 inputs whose positions share a word; 0 where not even one fits."""
        return WORD // self.bits // self.slots
