"""How the rows of a recurrent weight lie: all gates of 16 hidden numbers beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.emit import LANES
from nmcompile.kernels.recurrence import Recurrent


def blocks_of(spec: Recurrent) -> int:
    """Vectors of hidden numbers of one direction."""
    return -(-spec.hidden // LANES)


def by_blocks(spec: Recurrent, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(rows, hidden) as (directions x blocks x gates x 16, hidden), zeros behind the last number.

    Sums of all gates are then in registers together, where the state is made of them.
    """
    missing = blocks_of(spec) * LANES - spec.hidden
    split: npt.NDArray[Any] = weight.reshape(spec.directions, spec.gates, spec.hidden, -1)
    padded = np.pad(split, ((0, 0), (0, 0), (0, missing), (0, 0)))
    parted = padded.reshape(spec.directions, spec.gates, -1, LANES, spec.hidden)
    turned = np.ascontiguousarray(parted.transpose(0, 2, 1, 3, 4))
    return turned.reshape(-1, spec.hidden)


def bias_by_blocks(spec: Recurrent, bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(directions * hidden,) in whole vectors for each direction."""
    missing = blocks_of(spec) * LANES - spec.hidden
    return np.pad(bias.reshape(spec.directions, -1), ((0, 0), (0, missing))).reshape(-1)
