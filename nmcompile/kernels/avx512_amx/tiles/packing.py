"""Weights as the tiles that meet those of activations, and the lists of what 1xN keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_amx.tiles.config import TilesConfig
from nmcompile.kernels.avx512_amx.tiles.layout import Steps
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD
from nmcompile.kernels.avx512_vnni.lanes.config import OutputGroups
from nmcompile.kernels.avx512_vnni.lanes.lists import Pieces
from nmcompile.kernels.avx512_vnni.lanes.reading import Reading
from nmcompile.kernels.problem import arrays_of
from nmcompile.kernels.spec import Conv2d

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Gathering:
    """How many bytes lists bring together for each pixel.

    pitch: bytes from one gathered pixel to the next.
    by_row: whether the pixels of a kernel's row are one segment; else each is.
    columns: of the kernel.
    """

    pitch: int
    by_row: bool
    columns: int

    @classmethod
    def of(cls, conv: Conv2d, kept: npt.NDArray[np.bool_]) -> Gathering:
        """Of lists (lists, channels).

        A single piece is as short as its longest list, so that a row of the kernel is one run.
        """
        longest = max(1, int(np.count_nonzero(kept, axis=1).max()))
        single = longest <= BYTES
        pitch = -(-longest // QUAD) * QUAD if single else -(-longest // BYTES) * BYTES
        return cls(pitch, single and conv.dilation[1] == 1, conv.kernel[1])

    @property
    def steps(self) -> Steps:
        """Of a segment of the longest list; others have steps for each of their pieces."""
        return Steps.of(self.pitch * (self.columns if self.by_row else 1))


def pack_dense(positions: Bytes, reading: Reading, config: TilesConfig) -> dict[str, Array]:
    """Pack the bytes of a weight, (out, kh * kw, in).

    weights: int8, by group of outputs, segment, step, vector of outputs: tiles of depth / 4 rows of
    16 outputs of four bytes.
    """
    segments = positions.reshape(len(positions), -1, reading.segment)
    return {"weights": _tiles_of(segments, config.vectors)}


def _tiles_of(segments: Bytes, vectors: int) -> Bytes:
    """Weights (out, segments, bytes) by group of `vectors`, segment, step, vector, quad, lane."""
    outputs, count, size = segments.shape
    steps = Steps.of(size)
    whole = -(-outputs // LANES)
    padded = np.zeros((whole * LANES, count, max(size, steps.depth)), np.int8)
    padded[:outputs, :, :size] = segments
    parts, done = [], 0
    for start in steps.starts:
        part = padded[:, :, start : start + steps.depth].copy()
        part[:, :, : done - start] = 0
        done = start + steps.depth
        parts.append(part)
    # (vector, lane, segment, step, quad, byte)
    lanes = np.stack(parts, axis=2).reshape(whole, LANES, count, steps.count, -1, QUAD)
    groups = OutputGroups.of(outputs, vectors)
    last = (groups.count - 1) * vectors
    pieces = []
    for part, wide in ((lanes[:last], vectors), (lanes[last:], groups.last)):
        shaped = part.reshape(len(part) // wide, wide, *part.shape[1:])
        pieces.append(shaped.transpose(0, 3, 4, 1, 5, 2, 6).reshape(-1))
    return np.concatenate(pieces)


def pack_gathered(
    positions: Bytes, kept: npt.NDArray[np.bool_], conv: Conv2d, config: TilesConfig
) -> dict[str, Array]:
    """Pack the bytes of a weight, (out, kh * kw, in), of which lists (lists, in) keep some.

    weights: as those of `pack_dense`, list by list; the others as `Pieces`.
    """
    gathering, pieces = Gathering.of(conv, kept), Pieces.of(kept)
    single = gathering.pitch <= BYTES
    weights = []
    for number, (channels, count) in enumerate(zip(kept, np.diff(pieces.starts), strict=True)):
        outputs = slice(number * config.list_outputs, (number + 1) * config.list_outputs)
        part = positions[outputs][:, :, channels]
        width = gathering.pitch if single else int(count) * BYTES
        part = np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2])))
        if gathering.by_row:
            part = part.reshape(len(part), conv.kernel[0], -1)
        weights.append(_tiles_of(part, config.vectors))
    return {"weights": np.concatenate(weights), **arrays_of(pieces)}
