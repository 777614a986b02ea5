"""Storage of a sparse weight for kernels that work on panels of output channels.

A row r of a weight is one (input channel, kernel row, kernel column), flattened in that order. A
panel is n consecutive output channels. Per panel only the rows that have a non-zero are stored,
as n values each, so that one vector of outputs is updated from one broadcast input.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nmcompile.errors import PatternError
from nmcompile.sparsity.groups import Array, Shape, as_oihw, pad_axis


@dataclass(frozen=True, eq=False)
class RowLists:
    """A weight as lists of non-zero rows, one list per panel of `n` output channels.

    Entry e of an index list stands for the rows ``e * run .. e * run + run - 1``. With
    E = counts.sum() and G = ceil(out / n); entry p of all lists together holds
    ``values[p * run + k, j] = weight[g * n + j]`` at row ``indices[p] * run + k``.

    Attributes:
        shape: OIHW shape of the weight, without padding.
        n: output channels per panel.
        run: rows per index; 1, or kh * kw to keep a kernel window together.
        counts: (G,) int32, entries per panel; 0 for a panel that is all zero.
        indices: (E,) int32, ascending within a panel.
        values: (E * run, n), dtype of the weight; zero for channels past the last.
    """

    shape: Shape
    n: int
    run: int
    counts: Array
    indices: Array
    values: Array


def pack_rows(weight: ArrayLike, n: int, run: int) -> RowLists:
    """Pack a weight in panel-row lists.

    Args:
        weight: OIHW, OIK (conv1d) or OI (linear).
        n: output channels per panel; the last panel is filled up with zero filters.
        run: rows that share one index; divides in * kh * kw.

    Raises:
        PatternError: if n or run does not fit, or the weight has another rank.
        WeightError: if a dimension is zero.
    """
    array = as_oihw(weight)
    o, i, kh, kw = array.shape
    rows = i * kh * kw
    if n < 1:
        raise PatternError(f"panel of {n} output channels: expected at least 1")
    if run < 1 or rows % run:
        raise PatternError(
            f"run of {run} rows does not divide the {rows} rows of a weight of shape "
            f"{array.shape}; use 1 or {kh * kw} (the kernel window)"
        )
    panels = pad_axis(array.reshape(o, rows), 0, n).reshape(-1, n, rows // run, run)
    panel, entry = np.nonzero((panels != 0).any(axis=1).any(axis=2))
    values = panels.transpose(0, 2, 3, 1)[panel, entry]
    return RowLists(
        shape=(o, i, kh, kw),
        n=n,
        run=run,
        counts=np.bincount(panel, minlength=panels.shape[0]).astype(np.int32),
        indices=entry.astype(np.int32),
        values=np.ascontiguousarray(values.reshape(-1, n)),
    )


def unpack_rows(rows: RowLists) -> Array:
    """Restore the OIHW weight; the inverse of `pack_rows`."""
    o, i, kh, kw = rows.shape
    entries = i * kh * kw // rows.run
    panels = len(rows.counts)
    full = np.zeros((panels, entries, rows.run, rows.n), dtype=rows.values.dtype)
    panel = np.repeat(np.arange(panels), rows.counts)
    full[panel, rows.indices] = rows.values.reshape(-1, rows.run, rows.n)
    weight = full.transpose(0, 3, 1, 2).reshape(panels * rows.n, -1)[:o]
    return np.ascontiguousarray(weight).reshape(rows.shape)
