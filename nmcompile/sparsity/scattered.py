"""1xN blocks whose output channels do not follow each other.

Rearranging filters before pruning (Lin et al., TPAMI 2022, section 3.3) leaves the filters of a
block all over the layer. They are found again by what they keep: filters of one block have
non-zeros in the same input channels.
"""

import numpy as np

from nmcompile.sparsity.groups import Array, block_votes, contested

_ALIKE = 0.75
"""Least share of the filters that keep just the input channels of another: the others have lost a
weight or two of a kept block by chance."""


def scattered_order(nonzero: Array, n: int) -> Array | None:
    """Find an order of output channels in which the weight has 1xN blocks.

    Equal filters fill blocks first. Of those that are left, the ones that keep nearly the same
    input channels do, and then filters that are zero, which fit everywhere.

    Args:
        nonzero: bool, OIHW.
        n: output channels per block.

    Returns:
        Place p of the order holds output channel order[p]; None where there is no such order, or
        nothing but complete filters is pruned.
    """
    live = np.asarray(nonzero.any(axis=(2, 3)))
    voting = live.any(axis=1)
    kept = live[voting]
    if n < 2 or not kept.size or kept.all():
        return None
    classes: dict[bytes, list[int]] = {}
    for channel in np.flatnonzero(voting):
        classes.setdefault(live[channel].tobytes(), []).append(int(channel))
    alike = sum(len(members) for members in classes.values() if len(members) > 1)
    if alike < _ALIKE * len(kept):
        return None
    blocks, rest = [], []
    for members in classes.values():
        whole = len(members) // n * n
        blocks += [members[first : first + n] for first in range(0, whole, n)]
        rest += members[whole:]
    zeros = [int(channel) for channel in np.flatnonzero(~voting)]
    blocks += _joined(live, rest, zeros, n)
    # The shortest last: what misses one channel would shift all behind it.
    blocks.sort(key=lambda block: (-len(block), block))
    order = np.array([channel for block in blocks for channel in block] + zeros)
    broken = contested(*block_votes(nonzero[order], n))
    return None if broken.any() else order


def _joined(live: Array, rest: list[int], zeros: list[int], n: int) -> list[list[int]]:
    """Blocks of the channels in `rest`, filled up from `zeros`, which loses those."""
    blocks = []
    while rest:
        seed = max(rest, key=lambda channel: int(live[channel].sum()))
        support = live[seed]
        others = np.array([channel for channel in rest if channel != seed], np.int64)
        beyond = np.count_nonzero(live[others] & ~support, axis=1)
        missing = np.count_nonzero(~live[others] & support, axis=1)
        fits = (beyond == 0) & (2 * missing < np.count_nonzero(support))
        near = others[np.argsort(missing, kind="stable")]
        near = near[fits[np.argsort(missing, kind="stable")]][: n - 1]
        block = [seed, *map(int, near)]
        rest = [channel for channel in rest if channel not in block]
        while len(block) < n and zeros:
            block.append(zeros.pop())
        blocks.append(sorted(block))
    return blocks
