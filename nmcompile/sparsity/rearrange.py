"""Search for the order of output channels that keeps the most weight magnitude under 1xN.

Source: Lin et al., "1xN Pattern for Pruning Convolutional Neural Networks", TPAMI 2022, section 3.3
(filter rearrangement), which orders filters by their L1 norms. That order is one start here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nmcompile.sparsity.groups import Array, pad_axis
from nmcompile.sparsity.permute import (
    ESCAPES,
    PATIENCE,
    Deadline,
    Found,
    OnShare,
    OutOfTime,
    settled,
    silent,
)

MaskRule = Callable[[Array], Array]
"""Which blocks are kept: from the L1 norms (groups, in) of all blocks to bool of that shape."""

_LEAST_GAIN = 1e-9
"""Of what is kept: below it, a gain is rounding."""

_SEEDED = 4
"""Starts from groups around single filters."""

_ESCAPE_WORK = 2e10
"""Products that the escapes of one search may take, a few seconds; each takes channels x inputs x
groups of them, in some five rounds."""

_FEWEST_ESCAPES = 8

_SHAKEN = 16
"""One in so many channels changes its block at random at the start of an escape."""


@dataclass(frozen=True, eq=False)
class Filters:
    """One weight whose output channels are to be ordered.

    Attributes:
        slices: (out, in) L1 norms of the kernel windows.
        rule: decides which of its blocks are kept.
    """

    slices: Array
    rule: MaskRule


def search_filters(
    layers: Sequence[Filters],
    n: int,
    *,
    seed: int = 0,
    deadline: Deadline | None = None,
    escapes: int = ESCAPES,
    on_share: OnShare = silent,
) -> Found:
    """Find an order of output channels under which 1xN blocks keep more magnitude.

    In turns: given the order, the rule decides which blocks are kept; given the kept blocks, output
    channels change places between groups as long as that keeps more. Neither step can lose.
    Starts are the order given, the order of descending L1 norms, and groups around single filters
    drawn at random; escapes exchange a few channels at random.

    Args:
        layers: the weights that write the channels, all with as many; what they keep adds up.
        n: output channels per block; the last block may be short.
        seed: of the escapes.
        deadline: when to stop, None for never.
        escapes: most escapes.
        on_share: told about progress.
    """
    channels = len(layers[0].slices)
    search = _Search(layers, n, channels, deadline or Deadline(float("inf")))
    order = np.arange(channels)
    before = best = search.kept(order)
    finished = True
    random = np.random.default_rng(seed)
    norms = sum(layer.slices.sum(axis=1, dtype=np.float64) for layer in layers)
    try:
        if 1 < n < channels:
            starts = [order, np.argsort(-norms, kind="stable")]
            starts += [search.around(random.permutation(channels)) for _ in range(_SEEDED)]
            for start in starts:
                total, found = search.climb(start)
                if total > best:
                    best, order = total, found
            bounded = min(escapes, max(int(_ESCAPE_WORK / search.work), _FEWEST_ESCAPES))
            last = 0
            for step in range(bounded):
                on_share(step / bounded)
                total, found = search.climb(_shaken(order, random))
                if total > best:
                    best, order, last = total, found, step
                elif step - last >= PATIENCE:
                    break
    except OutOfTime:
        finished = False
    on_share(1.0)
    order = settled(order, search.groups)
    return Found(order, before, max(search.kept(order), before), finished)


def _shaken(order: Array, random: np.random.Generator) -> Array:
    count = max(len(order) // _SHAKEN, 2)
    places = random.permutation(len(order))[:count]
    result = order.copy()
    result[places] = order[np.roll(places, 1)]
    return result


class _Search:
    """groups: (channels,) the block of each place."""

    def __init__(
        self, layers: Sequence[Filters], n: int, channels: int, deadline: Deadline
    ) -> None:
        self.n, self.deadline = n, deadline
        self.slices = [np.asarray(layer.slices, np.float64) for layer in layers]
        self.rules = [layer.rule for layer in layers]
        self.places = np.arange(channels)
        self.groups = self.places // n
        inputs = sum(slices.shape[1] for slices in self.slices)
        self.work = 5.0 * channels * inputs * len(np.unique(self.groups))

    def masks(self, order: Array) -> tuple[list[Array], float]:
        """The kept blocks of every weight, and the magnitude that they hold."""
        found, total = [], 0.0
        for slices, rule in zip(self.slices, self.rules, strict=True):
            padded = pad_axis(slices[order], 0, self.n)
            blocks = padded.reshape(-1, self.n, slices.shape[1]).sum(axis=1)
            keep = rule(blocks)
            found.append(keep)
            total += float(blocks[keep].sum())
        return found, total

    def kept(self, order: Array) -> float:
        """The magnitude that is kept in an order."""
        return self.masks(order)[1]

    def around(self, order: Array) -> Array:
        """Group the channels around the first of every group, as k-means does around its seeds."""
        seeds = order[:: self.n]
        masks = [rule(s[seeds]) for s, rule in zip(self.slices, self.rules, strict=True)]
        return self._exchange(order, masks)

    def climb(self, order: Array) -> tuple[float, Array]:
        """Take turns until nothing is gained; returns what is kept, and the order."""
        masks, total = self.masks(order)
        while True:
            self.deadline.check()
            changed = self._exchange(order, masks)
            masks, kept = self.masks(changed)
            if kept <= total * (1 + _LEAST_GAIN):
                return total, order
            total, order = kept, changed

    def _exchange(self, order: Array, masks: Sequence[Array]) -> Array:
        """Exchange channels between blocks whose masks stay as they are."""
        # [c, g]: what channel c would keep in group g.
        worth = np.zeros((len(order), int(self.groups[-1]) + 1))
        for slices, mask in zip(self.slices, masks, strict=True):
            worth += slices @ mask.T
        order = order.copy()
        least = _LEAST_GAIN * float(worth.max(initial=0.0))
        while True:
            self.deadline.check()
            here = worth[order]
            moves = here - here[self.places, self.groups][:, None]
            # An exchange gains what both of its channels do, so the best between two groups is
            # made of the best of each: [g, h] is the best that moves from g to h.
            parts = pad_axis(moves, 0, self.n, fill=-np.inf).reshape(-1, self.n, moves.shape[1])
            best = parts.argmax(axis=1) + self.n * np.arange(len(parts))[:, None]
            gains = parts.max(axis=1)
            gains = np.triu(gains + gains.T, 1)
            ranked = np.argsort(-gains, axis=None, kind="stable")
            # With the masks held, exchanges of different channels add up.
            used = np.zeros(len(order), bool)
            for pair in ranked[: np.count_nonzero(gains > least)]:
                one, two = divmod(int(pair), len(parts))
                place, other = best[one, two], best[two, one]
                if not used[place] and not used[other]:
                    used[place] = used[other] = True
                    order[place], order[other] = order[other], order[place]
            if not used.any():
                return order
