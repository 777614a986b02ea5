"""Constants of depthwise convolutions: blocks of 64 channels in the order of `interleave`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.avx512_vnni.channels.frame import Array
from nmcompile.kernels.avx512_vnni.emit import BYTES, QUAD


def in_blocks(values: Array, width: int) -> Array:
    """Pad (channels, ...) with zeros to whole blocks and put each block's 64 in order.

    Channel 16 * l + 4 * v + k of a block goes to lane 4 * l + k of vector v. What is left of the
    channels is padded to `width` and repeated until it fills a block.
    """
    whole = len(values) // BYTES * BYTES
    rest = values[whole:]
    if len(rest):
        rest = np.pad(rest, ((0, width - len(rest)), *[(0, 0)] * (values.ndim - 1)))
        rest = np.concatenate([rest] * (BYTES // width))
    padded = np.concatenate([values[:whole], rest])
    parts = padded.reshape(-1, LANES // QUAD, QUAD, QUAD, *values.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(padded.shape)


def pack_depthwise(weight: npt.NDArray[np.int8], width: int) -> npt.NDArray[np.int8]:
    """(out, 1, kh, kw) as (blocks, kw, quads of kh, 4, 16, 4 of kh), flat; `width` of the rest."""
    out, _, height, columns = weight.shape
    rows = np.pad(weight[:, 0], ((0, 0), (0, -height % QUAD), (0, 0)))
    quads = in_blocks(rows.reshape(out, -1, QUAD, columns), width)
    blocks = quads.reshape(-1, BYTES, *quads.shape[1:])  # block, lane, quad, row, column
    packed: npt.NDArray[np.int8] = np.ascontiguousarray(blocks.transpose(0, 4, 2, 1, 3))
    return packed.reshape(-1)
