"""Sizes of a convolution with outputs in lanes, shared by the model, the packer and the emitter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nmcompile.kernels.avx512.emit import LANES

Method = Literal["picked", "listed", "gathered", "dense"]


@dataclass(frozen=True)
class LanesConfig:
    """Tile sizes of one convolution.

    method: how outputs meet their bytes. "picked": each lane picks four of 64 by its own index
        (N:M, unstructured, groups); "listed": all lanes have the same four, those that a list of
        `list_outputs` outputs keeps, read where they lie (1xN); "gathered": likewise, but brought
        together first; "dense": likewise, all bytes.
    pixels: consecutive output pixels of a row that are accumulated together.
    vectors: vectors of 16 output channels that are accumulated together.
    rows, tiles: rows of output pixels, and tiles of each, that meet a group of outputs before the
        next one does: its weights stay in cache.
    chunks: parts into which the groups of outputs, or their lists, are split for threads.
    list_outputs: output channels that share a list of bytes, a multiple of 16 * `vectors`; 0 where
        every output has a list of its own, or none has.
    lines: rows that are accumulated together, more than one where `pixels` are a whole row; then
        `rows` are a multiple of them, or all.
    """

    method: Method
    pixels: int
    vectors: int
    rows: int
    tiles: int
    chunks: int
    list_outputs: int = 0
    lines: int = 1


@dataclass(frozen=True)
class OutputGroups:
    """Output channels by `vectors` of 16; the last group has what is left.

    count: groups.
    last: vectors of the last group.
    last_outputs: output channels of the last group.
    """

    count: int
    last: int
    last_outputs: int

    @classmethod
    def of(cls, outputs: int, vectors: int) -> OutputGroups:
        """The groups of so many output channels."""
        size = vectors * LANES
        count = -(-outputs // size)
        left = outputs - (count - 1) * size
        return cls(count, -(-left // LANES), left)


def tiles_of(width: int, pixels: int) -> tuple[int, int]:
    """Full tiles of a row of output pixels, and the pixels that are left."""
    return divmod(width, pixels)


def padded_outputs(outputs: int) -> int:
    """Output channels in whole vectors."""
    return -(-outputs // LANES) * LANES
