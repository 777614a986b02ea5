"""Impose a pattern on a weight by magnitude, and say what that cost."""

import numpy as np
from numpy.typing import ArrayLike

from nmcompile.errors import PatternError, WeightError
from nmcompile.sparsity.groups import Array, Shape, as_oihw, nm_lines, nm_unlines, pad_axis
from nmcompile.sparsity.pattern import NM, Dense, OneByN, Pattern


def project(weight: ArrayLike, pattern: Pattern, density: float | None = None) -> Array:
    """Return a copy of the weight in which everything outside the pattern is zero.

    N:M keeps the n largest magnitudes of every group (SR-STE, ASP). 1xN keeps, in every group of n
    output channels, the same number of input channels, round(density * in) and at least 1 where
    density > 0: those whose block has the largest L1 norm (SUBP's uniform rule). Unstructured
    keeps the round(density * size) largest magnitudes of the tensor. Dense keeps everything. Equal
    magnitudes are decided by position: the lower index, in the order of the groups, is kept.

    The result passes `check` at the same density. It passes without one too, except that a sparse
    weight may not look 1xN afterwards where density is above 3/4 or most groups have fewer blocks
    than it allows: there, projection had little or nothing to drop.

    Args:
        weight: OIHW, OIK (conv1d) or OI (linear); any floating dtype.
        pattern: the pattern to impose.
        density: share of weights to keep, 0 to 1. Required for 1xN and unstructured; N:M and
            dense fix their own and ignore it.

    Returns:
        Same shape and dtype as the weight.

    Raises:
        PatternError: if density is missing or out of range, or the weight has another rank.
        WeightError: if the weight holds NaN or infinity, or has a zero-sized dimension.
    """
    original = np.asarray(weight)
    array = as_oihw(original)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise WeightError(
            f"weight of shape {original.shape} holds {bad} NaN or infinite values, so its largest "
            f"magnitudes are undefined; repair the model before imposing {pattern}"
        )
    if isinstance(pattern, Dense):
        return original.copy()
    if isinstance(pattern, NM):
        keep = _keep_nm(array, pattern)
    elif isinstance(pattern, OneByN):
        blocks = kept_blocks(array, pattern.n, checked_density(pattern, density))
        keep = np.repeat(blocks, pattern.n, axis=0)[: len(array), :, None, None]
    else:
        keep = kept_weights(array, checked_density(pattern, density))
    zero = np.zeros((), dtype=array.dtype)
    return np.where(keep, array, zero).reshape(original.shape)


def energy_kept(weight: ArrayLike, projected: ArrayLike) -> float:
    """Share of the squared magnitude that is left, 0 to 1; 1 for a weight that is all zero.

    Raises:
        PatternError: if the two shapes differ.
    """
    before, after = np.asarray(weight), np.asarray(projected)
    if before.shape != after.shape:
        raise PatternError(
            f"weight of shape {before.shape} cannot be compared with its projection of shape "
            f"{after.shape}; expected the same shape"
        )
    total = float(np.square(before, dtype=np.float64).sum())
    return float(np.square(after, dtype=np.float64).sum()) / total if total else 1.0


def checked_density(pattern: Pattern, density: float | None) -> float:
    """Return the density.

    Raises:
        PatternError: if it is missing or out of range.
    """
    if density is None or not 0 <= density <= 1:
        raise PatternError(
            f"pattern {pattern}: expected a density between 0 and 1 (share of weights to keep), "
            f"found {density}; the pattern alone does not fix it"
        )
    return density


def _keep_nm(array: Array, pattern: NM) -> Array:
    lines = nm_lines(array, pattern.axis)
    # -1 lies below every magnitude, so that padding never takes a place from a weight.
    padded = pad_axis(np.abs(lines), 1, pattern.m, fill=-1)
    groups = padded.reshape(-1, pattern.m)
    order = np.argsort(-groups, axis=1, kind="stable")[:, : pattern.n]
    keep = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(keep, order, True, axis=1)
    kept_lines = keep.reshape(padded.shape)[:, : lines.shape[1]]
    o, i, kh, kw = array.shape
    shape: Shape = (o, i, kh, kw)
    return nm_unlines(kept_lines, shape, pattern.axis)


def kept_channels(density: float, channels: int) -> int:
    """How many input channels a group of outputs keeps: at least one, unless nothing is kept."""
    return max(round(density * channels), 1) if density > 0 else 0


def kept_blocks(array: Array, n: int, density: float) -> Array:
    """Tell which 1xN blocks of an OIHW array to keep; bool of shape (groups, I)."""
    return kept_of_norms(block_norms(array, n), density)


def block_norms(array: Array, n: int) -> Array:
    """L1 norms of the 1xN blocks of an OIHW array, float64 of shape (groups, I)."""
    slices = np.abs(array).sum(axis=(2, 3), dtype=np.float64)
    return np.asarray(pad_axis(slices, 0, n).reshape(-1, n, array.shape[1]).sum(axis=1))


def kept_of_norms(blocks: Array, density: float) -> Array:
    """`kept_blocks` from the norms of the blocks."""
    kept = kept_channels(density, blocks.shape[1])
    order = np.argsort(-blocks, axis=1, kind="stable")[:, :kept]
    keep = np.zeros(blocks.shape, dtype=bool)
    np.put_along_axis(keep, order, True, axis=1)
    return keep


def kept_weights(array: Array, density: float) -> Array:
    """Tell which weights of an array to keep, by magnitude alone; bool of its shape."""
    magnitudes = np.abs(array).reshape(-1)
    kept = round(density * magnitudes.size)
    if kept == 0:
        return np.zeros(array.shape, dtype=bool)
    threshold = np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept]
    keep = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    keep[ties[: kept - int(np.count_nonzero(keep))]] = True
    return np.asarray(keep.reshape(array.shape))
