"""Sizes of a convolution on tiles, shared by the model, the packer and the emitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nmcompile.kernels.avx512_amx.instructions import REGISTERS, SUMS

Method = Literal["gathered", "dense"]


@dataclass(frozen=True)
class TilesConfig:
    """Tile sizes of one convolution.

    method: "dense": activations are loaded as they lie; "gathered": the bytes that
        `list_outputs` outputs read are brought together first (1xN).
    pixels: consecutive output pixels of one row in a tile.
    across, vectors: tiles of pixels, and of 16 output channels, that are multiplied together.
    rows, tiles: rows of output pixels, and tiles of each, that meet a group of outputs before the
        next one does.
    chunks: parts into which the groups of outputs, or their lists, are split for threads.
    list_outputs: output channels that share a list, a multiple of 16 * `vectors`; 0 if dense.
    """

    method: Method
    pixels: int
    across: int
    vectors: int
    rows: int
    tiles: int
    chunks: int
    list_outputs: int = 0


@dataclass(frozen=True)
class Registers:
    """Which tiles hold what, where `across` x `vectors` tiles of sums are made together.

    activations, weights: the tiles that are loaded in turn.
    """

    activations: tuple[int, ...]
    weights: tuple[int, ...]

    @classmethod
    def of(cls, across: int, vectors: int) -> Registers:
        """Everything in tiles of its own, or the longer side in turn in what is left."""
        assert across * vectors <= SUMS
        first = across * vectors
        shared = tuple(range(first, first + min(across, vectors)))
        behind = first + len(shared)
        rest = tuple(range(behind, min(REGISTERS, behind + max(across, vectors))))
        return cls(rest, shared) if across >= vectors else cls(shared, rest)
