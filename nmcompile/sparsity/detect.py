"""Which patterns does a weight have, and which of them is worth lowering for?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nmcompile.sparsity.groups import (
    Array,
    as_oihw,
    block_votes,
    contested,
    nm_lines,
    pad_axis,
    stored_weights,
)
from nmcompile.sparsity.pattern import NM, Axis, Dense, OneByN, Pattern, Unstructured
from nmcompile.sparsity.scattered import scattered_order

_BLOCKS = (2, 4, 8, 16, 32)  # each twice the last: `_one_by_n` merges neighbouring groups
_MS = (2, 4, 8, 16, 32)  # likewise, for `_nm`

_DENSE_FROM = 0.95
"""Density from which skipping zeros cannot pay for its own bookkeeping."""

_BLOCK_SLACK = 1.1
"""Most that 1xN may store, per non-zero: beyond it, kept blocks are sparse themselves."""

_NM_SLACK = 1.25
"""Most that N:M may admit, per non-zero: beyond it, the pattern holds by accident."""


@dataclass(frozen=True)
class Detection:
    """The outcome of `detect`.

    Attributes:
        pattern: the most useful of the patterns that hold.
        holds: all that hold: 1xN from the largest block down, N:M from the lowest n/m up,
            unstructured, dense.
        density: share of weights that are non-zero.
        order: of the output channels, where `pattern` is 1xN and the filters of its blocks do not
            follow each other: place p holds output channel order[p]. Else None.
    """

    pattern: Pattern
    holds: tuple[Pattern, ...]
    density: float
    order: tuple[int, ...] | None = None


def detect(weight: ArrayLike) -> Detection:
    """Find the patterns of a weight.

    Candidates are 1xN for N in 2, 4, 8, 16, 32 and N:M on all axes for M in 2, 4, 8, 16, 32 and N
    a power of two below M; on axis ohwi only where its groups are not those of axis ic. They hold
    in the sense of `check`; 1xN is listed only if it drops a block at all, N:M only if its groups
    are no longer than a line of the weight (in * kh * kw on axis ic), since otherwise they say
    nothing that a smaller block or group does not say.

    The most useful is the 1xN of the largest block whose kept blocks are nearly full, and whose
    filters follow each other if there is one; else the N:M that admits the fewest weights, if the
    weight has nearly as many (smaller M first, then axis ic); else unstructured below 95 % density;
    else dense.

    Args:
        weight: OIHW, OIK (conv1d) or OI (linear), any real dtype.

    Raises:
        PatternError: if the weight has another number of dimensions.
        WeightError: if a dimension is zero.
    """
    nonzero = as_oihw(weight) != 0
    density = int(np.count_nonzero(nonzero)) / nonzero.size
    # Stored or admitted share of the weight per pattern, most useful first.
    blocks = _one_by_n(nonzero)
    groups = {**_nm(nonzero, "ic"), **_nm(nonzero, "flat"), **_nm(nonzero, "ohwi")}
    ranked = sorted(groups, key=lambda p: (groups[p], p.n / p.m, p.m, p.axis != "ic"))

    def useful(stored: Mapping[OneByN, float]) -> OneByN | None:
        # Half a block of this size already spans all output channels: a smaller one says as much.
        telling = (p for p in stored if p.n < 2 * nonzero.shape[0])
        return next((p for p in telling if stored[p] <= _BLOCK_SLACK * density), None)

    pattern: Pattern = Dense()
    order: tuple[int, ...] | None = None
    one_by_n = useful(blocks) if density < _DENSE_FROM else None
    orders = _scattered(nonzero) if density < _DENSE_FROM and one_by_n is None else {}
    scattered = useful({p: _stored(nonzero[order], p.n) for p, order in orders.items()})
    listed = sorted({*blocks, *orders}, key=lambda p: -p.n)
    if density < _DENSE_FROM:
        if one_by_n is not None:
            pattern = one_by_n
        elif scattered is not None:
            pattern, order = scattered, tuple(int(channel) for channel in orders[scattered])
        elif ranked and groups[ranked[0]] <= _NM_SLACK * density:
            pattern = ranked[0]
        else:
            pattern = Unstructured()
    return Detection(pattern, (*listed, *ranked, Unstructured(), Dense()), density, order)


def _scattered(nonzero: Array) -> dict[OneByN, Array]:
    """Orders of the output channels by the 1xN patterns that hold in them, largest first."""
    found: dict[OneByN, Array] = {}
    for n in reversed(_BLOCKS):
        order = scattered_order(nonzero, n)
        if order is not None and _stored(nonzero[order], n) < 1:
            found[OneByN(n)] = order
    return found


def _stored(nonzero: Array, n: int) -> float:
    """Share of the weights that lie in blocks which are not all zero."""
    live, _ = block_votes(nonzero, n)
    return stored_weights(live, n, len(nonzero)) / float(len(nonzero) * nonzero.shape[1])


def _one_by_n(nonzero: Array) -> dict[OneByN, float]:
    """Return the 1xN patterns that hold and drop a block, largest first, with what they store."""
    outputs, channels = nonzero.shape[:2]
    live, votes = block_votes(nonzero, 1)
    live, votes = pad_axis(live, 0, _BLOCKS[-1]), pad_axis(votes, 0, _BLOCKS[-1])
    found: dict[OneByN, float] = {}
    for n in _BLOCKS:
        live, votes = live[0::2] + live[1::2], votes[0::2] + votes[1::2]
        if contested(live, votes).any():
            continue
        stored = stored_weights(live, n, outputs) / (outputs * channels)
        if stored < 1:
            found[OneByN(n)] = stored
    return dict(reversed(found.items()))


def _nm(nonzero: Array, axis: Axis) -> dict[NM, float]:
    """Return the N:M patterns that hold on an axis, with the largest density each admits.

    That is n/m, but more where a line ends in a short group.
    """
    lines = nm_lines(nonzero, axis)
    length = lines.shape[1]
    counts = pad_axis(lines, 1, _MS[-1]).view(np.uint8)
    found: dict[NM, float] = {}
    for m in _MS:
        if m > length:
            break
        counts = counts[:, 0::2] + counts[:, 1::2]
        most = int(counts.max())
        full, tail = divmod(length, m)
        n = 1 if axis != "ohwi" or nonzero[0].size % m else m
        while n < m:
            if most <= n:
                found[NM(n, m, axis)] = (full * n + min(tail, n)) / length
            n *= 2
    return found
