"""How the rows of a recurrent weight lie, in panels of a few vectors of outputs.

A panel has all gates of a block of 16 hidden numbers: their sums are then in registers together,
where the state is made of them. Where a GRU resets its state first, one has the gates z and r, and
behind these panels of a direction there are those of h, of two blocks each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.recurrence import Recurrent

PAIR = 2


def blocks_of(spec: Recurrent) -> int:
    """Vectors of hidden numbers of one direction."""
    return -(-spec.hidden // LANES)


def pairs_of(spec: Recurrent) -> int:
    """Panels of h of one direction, where those are apart."""
    return -(-blocks_of(spec) // PAIR)


def vectors_of(spec: Recurrent) -> int:
    """Of outputs in a panel."""
    return PAIR if spec.reset_first else spec.gates


def panels_of(spec: Recurrent) -> int:
    """Of one direction."""
    return blocks_of(spec) + spec.reset_first * pairs_of(spec)


def by_panels(spec: Recurrent, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(rows, hidden) as (directions x panels x vectors x 16, hidden), zeros where there is none."""
    split: npt.NDArray[Any] = weight.reshape(spec.directions, spec.gates, spec.hidden, -1)
    if not spec.reset_first:
        return _by_blocks(split).reshape(-1, spec.hidden)
    apart = split[:, PAIR:]
    missing = pairs_of(spec) * PAIR * LANES - spec.hidden
    last = np.pad(apart, ((0, 0), (0, 0), (0, missing), (0, 0)))
    parts = [_by_blocks(split[:, :PAIR]), last.reshape(spec.directions, -1, spec.hidden)]
    return np.concatenate(parts, axis=1).reshape(-1, spec.hidden)


def _by_blocks(split: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(directions, gates, hidden, inputs) as (directions, blocks x gates x 16, inputs)."""
    directions, gates, hidden, inputs = split.shape
    padded = np.pad(split, ((0, 0), (0, 0), (0, -hidden % LANES), (0, 0)))
    parted = padded.reshape(directions, gates, -1, LANES, inputs)
    return np.ascontiguousarray(parted.transpose(0, 2, 1, 3, 4)).reshape(directions, -1, inputs)


def bias_by_blocks(spec: Recurrent, bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(directions * hidden,) in whole vectors for each direction."""
    split = bias.reshape(spec.directions, -1)
    return np.pad(split, ((0, 0), (0, -spec.hidden % LANES))).reshape(-1)
