"""How bfloat16 activations lie: (N, H, W, C), channels rounded up to multiples of 8, or to 4.

Four are for images of three: seven pixels of a stem's window are then one step of a tile.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

VECTOR, FEW = 8, 4  # channels


def padded(channels: int) -> int:
    """Channels in memory; what those behind the last hold is finite."""
    return FEW if channels <= FEW else -(-channels // VECTOR) * VECTOR


def rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of values rounded to bfloat16, the nearest, halves to even."""
    bits: npt.NDArray[np.uint16] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return bits
