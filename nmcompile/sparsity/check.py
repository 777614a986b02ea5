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
)
from nmcompile.sparsity.pattern import NM, OneByN, Pattern


@dataclass(frozen=True)
class CheckResult:
    """The outcome of `check`.

    `violations` counts the N:M groups or 1xN blocks that break the pattern; `first` is the OIHW
    index of the first weight of the first of them, None where there is none.
    """

    ok: bool
    violations: int
    first: tuple[int, ...] | None


def check(weight: ArrayLike, pattern: Pattern) -> CheckResult:
    """Check a weight against a pattern. Dense and unstructured hold for every weight.

    N:M: a group breaks the pattern when it has more than n non-zeros; a short group at the end of
    a line may have up to n as well. Groups are counted in the order of `nm_lines`.

    1xN: a kept block may hold anything, zeros too; a dropped block must be all zero. A weight does
    not record which blocks were dropped, so the output channels vote: a channel that is zero over
    the whole kernel window votes for dropping, and a block breaks the pattern when at least half
    of them do while another is not zero. A stray zero in a kept block, which millions of float32
    weights hold by chance, therefore breaks nothing, and a stray weight in a dropped block does.
    An output channel whose complete filter is zero has no vote: it was removed by channel pruning
    or added as padding, and says nothing about single input channels. Blocks are counted by group
    of output channels, then by input channel.

    Args:
        weight: OIHW, OIK (conv1d) or OI (linear), any real dtype. NaN counts as non-zero.
        pattern: the pattern it is said to have.

    Raises:
        PatternError: if the weight has another number of dimensions.
        WeightError: if a dimension is zero.
    """
    array = as_oihw(weight)
    o, i, kh, kw = array.shape
    if isinstance(pattern, NM):
        return _check_nm(array != 0, pattern, (o, i, kh, kw))
    if isinstance(pattern, OneByN):
        return _check_one_by_n(array != 0, pattern.n)
    return CheckResult(ok=True, violations=0, first=None)


def _check_nm(nonzero: Array, pattern: NM, shape: Shape) -> CheckResult:
    lines = pad_axis(nm_lines(nonzero, pattern.axis), 1, pattern.m)
    counts = lines.reshape(lines.shape[0], -1, pattern.m).sum(axis=2, dtype=np.uint8)
    broken = counts > pattern.n
    violations = int(np.count_nonzero(broken))
    if not violations:
        return CheckResult(ok=True, violations=0, first=None)
    line, group = divmod(int(broken.argmax()), broken.shape[1])
    first = nm_index(line, group * pattern.m, shape, pattern.axis)
    return CheckResult(ok=False, violations=violations, first=first)


def _check_one_by_n(nonzero: Array, n: int) -> CheckResult:
    live, votes = block_votes(nonzero, n)
    broken = contested(live, votes)
    violations = int(np.count_nonzero(broken))
    if not violations:
        return CheckResult(ok=True, violations=0, first=None)
    group, channel = divmod(int(broken.argmax()), broken.shape[1])
    return CheckResult(ok=False, violations=violations, first=(group * n, channel, 0, 0))
