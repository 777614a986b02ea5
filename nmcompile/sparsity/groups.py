"""How each pattern cuts a weight: the one place that knows the order of groups and blocks.

Everything here works on OIHW arrays; `as_oihw` brings other ranks to that form.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nmcompile.errors import PatternError, WeightError
from nmcompile.sparsity.pattern import Axis

Array = NDArray[Any]
Shape = tuple[int, int, int, int]

UNIFORM_SHARE = 0.75
"""Most blocks that a uniformly pruned weight keeps: single blocks may be zero by chance."""


def as_oihw(weight: ArrayLike) -> Array:
    """View a weight as OIHW: linear (O, I) as (O, I, 1, 1), conv1d (O, I, K) as (O, I, 1, K).

    Of a conv3d (O, I, D, H, W) height and width become one: (O, I, D, H * W).

    Raises:
        PatternError: if the weight has another number of dimensions.
        WeightError: if a dimension is zero.
    """
    array = np.asarray(weight)
    if array.ndim not in (2, 3, 4, 5):
        raise PatternError(
            f"weight of shape {array.shape} has {array.ndim} dimensions; expected 4 (OIHW), "
            "5 (OIDHW, conv3d), 3 (OIK, conv1d) or 2 (OI, linear)"
        )
    if array.size == 0:
        raise WeightError(
            f"weight of shape {array.shape} has a dimension of size zero; remove the layer"
        )
    if array.ndim == 3:
        return array[:, :, None, :]
    if array.ndim == 5:
        return array.reshape(*array.shape[:3], -1)
    return array.reshape(array.shape + (1,) * (4 - array.ndim))


def pad_axis(array: Array, axis: int, multiple: int, fill: float = 0) -> Array:
    """Lengthen one axis to a multiple, filling the new entries; returns the array if it fits."""
    missing = -array.shape[axis] % multiple
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths, constant_values=fill)


def nm_lines(weight: Array, axis: Axis) -> Array:
    """Lay an OIHW array out in N:M order.

    Returns:
        Shape (lines, length): one line per output channel in HWI order for ``ic``, one line for
        the whole tensor for ``flat`` and, in OHWI order, for ``ohwi``. Groups start at the start
        of a line and never leave it.
    """
    if axis == "flat":
        return weight.reshape(1, -1)
    lines = 1 if axis == "ohwi" else weight.shape[0]
    return weight.transpose(0, 2, 3, 1).reshape(lines, -1)


def nm_unlines(lines: Array, shape: Shape, axis: Axis) -> Array:
    """Bring lines back to OIHW; the inverse of `nm_lines`."""
    if axis == "flat":
        return lines.reshape(shape)
    o, i, kh, kw = shape
    return lines.reshape(o, kh, kw, i).transpose(0, 3, 1, 2)


def nm_index(line: int, position: int, shape: Shape, axis: Axis) -> Shape:
    """Find the OIHW index of a position in a line of `nm_lines`."""
    o, i, kh, kw = shape
    if axis == "flat":
        found = np.unravel_index(position, shape)
        return int(found[0]), int(found[1]), int(found[2]), int(found[3])
    position += line * kh * kw * i
    out, row, col, channel = np.unravel_index(position, (o, kh, kw, i))
    return int(out), int(channel), int(row), int(col)


def block_votes(nonzero: Array, n: int) -> tuple[Array, Array]:
    """Count per 1xN block how many output channels keep it, and how many have a say.

    A channel keeps a block if it has a non-zero anywhere in the kernel window. A channel whose
    complete filter is zero has no say.

    Args:
        nonzero: bool, OIHW.
        n: output channels per block.

    Returns:
        int32 counts of shape (groups, I) and (groups, 1).
    """
    o, i, kh, kw = nonzero.shape
    live = np.asarray(nonzero.reshape(o, i, kh * kw).any(axis=2))
    voting = np.asarray(live.any(axis=1, keepdims=True))
    return (
        pad_axis(live, 0, n).reshape(-1, n, i).sum(axis=1, dtype=np.int32),
        pad_axis(voting, 0, n).reshape(-1, n, 1).sum(axis=1, dtype=np.int32),
    )


def contested(live: Array, votes: Array) -> Array:
    """Tell which 1xN blocks break the pattern; takes the counts of `block_votes`.

    None does where most groups keep the same number of blocks and no group keeps more, if that is
    at most three quarters. Else those that are not all zero although at least half of the votes
    drop them.
    """
    blocks = live.shape[1]
    kept = np.count_nonzero(live[votes[:, 0] > 0], axis=1)
    most = int(kept.max(initial=0))
    pruned = most < blocks and most <= round(UNIFORM_SHARE * blocks)
    if pruned and 2 * np.count_nonzero(kept == most) > len(kept):
        return np.zeros(live.shape, dtype=bool)
    return np.asarray((live > 0) & (2 * live <= votes))


def stored_weights(live: Array, n: int, outputs: int) -> int:
    """Windows in 1xN blocks that are not all zero; takes the first counts of `block_votes`."""
    sizes = np.clip(outputs - n * np.arange(len(live)), 0, n)
    return int(sizes @ np.count_nonzero(live, axis=1))
