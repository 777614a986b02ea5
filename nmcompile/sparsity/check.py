"""Does a weight have the pattern it is said to have?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nmcompile.sparsity.groups import (
    Array,
    Shape,
    as_oihw,
    block_votes,
    contested,
    nm_index,
    nm_lines,
    pad_axis,
    stored_weights,
)
from nmcompile.sparsity.pattern import NM, OneByN, Pattern, Unstructured
from nmcompile.sparsity.project import checked_density, kept_blocks, kept_weights
from nmcompile.sparsity.scattered import scattered_order


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`.

    `violations` counts the N:M groups, 1xN blocks or (unstructured) single weights that break the
    pattern; `first` is the OIHW index of the first weight of the first of them, None where there is
    none.
    """

    ok: bool
    violations: int
    first: tuple[int, ...] | None


def check(weight: ArrayLike, pattern: Pattern, density: float | None = None) -> CheckResult:
    """Check a weight against a pattern. Dense and unstructured hold for every weight.

    N:M: a group breaks the pattern when it has more than n non-zeros; a short group at the end of
    a line may have up to n as well. Groups are counted in the order of `nm_lines`.

    1xN: a kept block may hold anything, zeros too; a dropped block must be all zero. A weight does
    not record which blocks were dropped. The pattern therefore holds where most groups of n output
    channels keep the same number of input channels, at most three quarters of them, and no group
    keeps more: that is how uniform pruning leaves a weight, whatever its kept blocks hold. In any
    other weight the output channels vote: a channel that is zero over the whole kernel window votes
    for dropping, and a block breaks the pattern when at least half of them do while another is not
    zero. So a stray zero in a kept block, which millions of float32 weights hold by chance, breaks
    nothing; a stray weight in a dropped block does, where there is another group to compare with;
    and so do the blocks of N:M and unstructured weights, which hold many zeros but are hardly ever
    dropped. Where blocks break, the pattern still holds if it does in another order of the output
    channels (`nmcompile.sparsity.scattered`). An output channel whose complete filter is zero has
    no vote: it was removed by channel pruning or added as padding, and says nothing about single
    input channels. Blocks are counted by group of output channels, then by input channel.

    With a density, 1xN and unstructured are checked against `project` instead: a block or weight
    breaks the pattern when it is not zero although `project` would drop it.

    Args:
        weight: OIHW, OIK (conv1d) or OI (linear), any real dtype. NaN counts as non-zero.
        pattern: the pattern it is said to have.
        density: share of weights that may be kept, 0 to 1; of no consequence for N:M and dense.

    Raises:
        PatternError: if the weight has another number of dimensions, or density is out of range.
        WeightError: if a dimension is zero.
    """
    array = as_oihw(weight)
    o, i, kh, kw = array.shape
    if isinstance(pattern, NM):
        return _check_nm(array != 0, pattern, (o, i, kh, kw))
    if isinstance(pattern, OneByN):
        return _check_one_by_n(array, pattern, density)
    if isinstance(pattern, Unstructured) and density is not None:
        extra = (array != 0) & ~kept_weights(array, checked_density(pattern, density))
        first = np.unravel_index(int(extra.argmax()), extra.shape)
        return _result(int(np.count_nonzero(extra)), tuple(int(i) for i in first))
    return _result(0, None)


def excess(weight: ArrayLike, pattern: Pattern, density: float) -> float | None:
    """The share of a weight that is kept, where that is more than a density allows; else None.

    Whole input channels are kept for 1xN, and at least one; N:M and dense say themselves how much.
    """
    array = np.asarray(weight)
    if isinstance(pattern, OneByN):
        kept, units = stored_share(array, pattern), array.shape[1]
    elif isinstance(pattern, Unstructured):
        kept, units = np.count_nonzero(array) / array.size, array.size
    else:
        return None
    return kept if kept > max(np.rint(density * units), 1) / units else None


def stored_share(weight: ArrayLike, pattern: OneByN) -> float:
    """Share of the weights that lie in blocks which are not all zero, 0 to 1.

    Of scattered blocks, if that is less.

    Raises:
        PatternError: if the weight has another number of dimensions.
        WeightError: if a dimension is zero.
    """
    array = as_oihw(weight) != 0
    order = scattered_order(array, pattern.n)
    orders = [array] if order is None else [array, array[order]]
    stored = (stored_weights(block_votes(a, pattern.n)[0], pattern.n, len(a)) for a in orders)
    return min(stored) / float(len(array) * array.shape[1])


def _check_nm(nonzero: Array, pattern: NM, shape: Shape) -> CheckResult:
    lines = pad_axis(nm_lines(nonzero, pattern.axis), 1, pattern.m)
    counts = lines.reshape(lines.shape[0], -1, pattern.m).sum(axis=2, dtype=np.uint8)
    broken = counts > pattern.n
    line, group = divmod(int(broken.argmax()), broken.shape[1])
    first = nm_index(line, group * pattern.m, shape, pattern.axis)
    return _result(int(np.count_nonzero(broken)), first)


def _check_one_by_n(array: Array, pattern: OneByN, density: float | None) -> CheckResult:
    live, votes = block_votes(array != 0, pattern.n)
    if density is None:
        broken = contested(live, votes)
        if broken.any() and scattered_order(array != 0, pattern.n) is not None:
            return _result(0, None)
    else:
        kept = kept_blocks(array, pattern.n, checked_density(pattern, density))
        broken = (live > 0) & ~kept
    group, channel = divmod(int(broken.argmax()), broken.shape[1])
    return _result(int(np.count_nonzero(broken)), (group * pattern.n, channel, 0, 0))


def _result(violations: int, first: tuple[int, ...] | None) -> CheckResult:
    return CheckResult(violations == 0, violations, first if violations else None)
