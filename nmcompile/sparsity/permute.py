"""Search for the order of input channels that keeps the most weight magnitude under N:M.

Source: Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021: greedy exchanges of
channels between groups, and bounded escapes from where no exchange helps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from nmcompile.sparsity.groups import Array

OnShare = Callable[[float], None]
"""Told how much of a search is done, 0 to 1."""

ESCAPES = 100
"""Most escapes of one search; all of them add about a tenth of what climbing gains."""

_ESCAPE_WORK = 2e9
"""Maxima that the escapes of one search may take, about a second: large weights get fewer."""

_ROWS_PER_ESCAPE = 100
"""Rows of the gains that an escape computes anew, as measured: channels x rows maxima each."""

_FEWEST_ESCAPES = 8

PATIENCE = 40
"""Escapes in a row that lead nowhere before a search ends: small weights are done by then."""

_SHAKEN = 4
"""Exchanges at random that begin an escape: of 1 to 8, it gains most for the time it takes."""

_BLOCK = 1 << 16
"""Numbers worked on at a time: with their maxima, two arrays that a second-level cache holds."""

_WORK_PER_LOOK = 1 << 25
"""Numbers between two looks at the clock: about a hundredth of a second."""

_LEAST_GAIN = 1e-6
"""Of what a group keeps on average: below it, a gain is rounding of float32 sums."""


def silent(share: float) -> None:
    """Report nothing."""


class OutOfTime(Exception):
    """The time limit is over."""


@dataclass(frozen=True)
class Deadline:
    """`end` in seconds of the monotonic clock."""

    end: float

    @staticmethod
    def after(seconds: float) -> Deadline:
        """A deadline that many seconds from now."""
        return Deadline(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(self.end - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raise OutOfTime when it is over."""
        if time.monotonic() >= self.end:
            raise OutOfTime


@dataclass(frozen=True, eq=False)
class Found:
    """The outcome of a search.

    Attributes:
        order: (channels,) int64; place i is taken by what was channel order[i].
        before: magnitude that is kept in the order given.
        after: magnitude that is kept in `order`, at least `before`.
        finished: whether the search ended by itself; where the time limit ended it, the same seed
            may find another order next time.
    """

    order: Array
    before: float
    after: float
    finished: bool


@dataclass(frozen=True, eq=False)
class Window:
    """The magnitudes of a weight around the channels that are to be ordered.

    Attributes:
        columns: (length, rows) magnitudes, one line per input channel and one row per output
            channel and kernel position; length is a multiple of m, and groups start at its
            multiples. Channels that stay where they are lie before and behind, filled up with
            zeros.
        lead: index of the first channel that is to be ordered.
    """

    columns: Array
    lead: int


def window(magnitudes: Array, m: int, offset: int, channels: int) -> Window:
    """Cut a window out of the magnitudes (in, rows) of a weight.

    Args:
        magnitudes: of all input channels.
        m: length of a group.
        offset: index of the first channel that is to be ordered.
        channels: how many they are.
    """
    start = offset // m * m
    length = -(-(offset + channels - start) // m) * m
    part = magnitudes[start : start + length]
    missing = length - len(part)
    return Window(np.pad(part, ((0, missing), (0, 0))) if missing else part, offset - start)


def search_order(
    windows: Sequence[Window],
    channels: int,
    n: int,
    m: int,
    *,
    seed: int = 0,
    deadline: Deadline | None = None,
    escapes: int = ESCAPES,
    on_share: OnShare = silent,
) -> Found:
    """Find an order of channels under which N:M keeps more magnitude.

    With A the sum of the n - 1 largest others of a group and B the n-th largest of them, a group
    keeps A + max(B, x) with x in one of its places. So every exchange of two channels is known
    from the sums over rows of max(B, x), and exchanges between disjoint groups add up: the best of
    them are made together, and only the sums of the groups they touch are computed anew.

    Args:
        windows: the weights that read the channels; what they keep adds up.
        channels: how many there are.
        n: weights kept of each group.
        m: length of a group.
        seed: of the escapes.
        deadline: when to stop, None for never.
        escapes: most escapes; fewer where the weights are large.
        on_share: told about progress.
    """
    search = _Search(windows, channels, n, m, deadline or Deadline(float("inf")))
    before = best = search.kept()
    order = search.order.copy()
    finished = True
    each = _ROWS_PER_ESCAPE * channels * sum(columns.shape[1] for columns in search.columns)
    bounded = min(escapes, max(int(_ESCAPE_WORK / max(each, 1)), _FEWEST_ESCAPES))
    random = np.random.default_rng(seed)
    try:
        if n < m and channels > 1 and search.several_groups():
            search.climb(on_share)
            best, order = search.total, search.order.copy()
            last = 0
            for step in range(bounded):
                on_share(0.5 + 0.5 * step / bounded)
                saved = search.save()
                search.shake(random)
                search.climb()
                if search.total > best:
                    best, order, last = search.total, search.order.copy(), step
                elif step - last >= PATIENCE:
                    break
                else:
                    search.restore(saved)
    except OutOfTime:
        finished = False
        # What was reached before the clock ran out counts, where it is better.
        if search.kept() > best:
            order = search.order.copy()
    on_share(1.0)
    order = settled(order, search.members)
    return Found(order, before, max(search.kept_in(order), before), finished)


def settled(order: Array, members: Array) -> Array:
    """Channels ascend within a group, where their places say nothing."""
    result = order.copy()
    for group in np.unique(members):
        places = np.flatnonzero(members == group)
        result[places] = np.sort(order[places])
    return result


class _Search:
    """The state: who stands where, and what every exchange would bring.

    Windows of equal lead have the same groups, so they are one matrix here.

    members: (channels,) number of the set of groups that a place belongs to.
    gains: (channels, channels) float32; [p, q] is what the groups of place p would keep more with
    the channel that stands on place q; 0 within a group.
    """

    def __init__(
        self, windows: Sequence[Window], channels: int, n: int, m: int, deadline: Deadline
    ) -> None:
        self.n, self.m, self.deadline = n, m, deadline
        self.leads = sorted({w.lead for w in windows})
        self.columns = [
            np.ascontiguousarray(
                np.concatenate([w.columns for w in windows if w.lead == lead], axis=1), np.float32
            )
            for lead in self.leads
        ]
        self.places = np.arange(channels)
        self.order = np.arange(channels)
        self.groups = [(self.places + lead) // m for lead in self.leads]
        together = np.stack(self.groups) if self.groups else np.zeros((1, channels), int)
        self.members = np.unique(together, axis=1, return_inverse=True)[1].reshape(-1)
        self.gains = np.zeros((0, 0), np.float32)
        self.threads = len(os.sched_getaffinity(0))
        self.start = [columns.copy() for columns in self.columns]
        self.total = 0.0

    def several_groups(self) -> bool:
        return any(len(np.unique(groups)) > 1 for groups in self.groups)

    def kept(self) -> float:
        """What is kept now, summed in float64."""
        return sum(self._kept(columns) for columns in self.columns)

    def kept_in(self, order: Array) -> float:
        """What is kept in an order of the channels as they came."""
        total = 0.0
        for columns, lead in zip(self.start, self.leads, strict=True):
            moved = columns.copy()
            moved[lead : lead + len(order)] = columns[lead + order]
            total += self._kept(moved)
        return total

    def _kept(self, columns: Array) -> float:
        groups = columns.reshape(-1, self.m, columns.shape[1])
        largest = np.partition(groups, self.m - self.n, axis=1)[:, self.m - self.n :]
        return float(largest.sum(dtype=np.float64))

    def climb(self, on_share: OnShare = silent) -> None:
        """Exchange channels until nothing is gained; that is half of the work to report."""
        if not len(self.gains):
            gains = np.zeros((len(self.places),) * 2, np.float32)
            self._compute(self.places, gains)
            self.gains, self.total = gains, self.kept()
        least = _LEAST_GAIN * self.total / max(len(self.places) // self.m, 1)
        most = 0
        while True:
            chosen = self._choose(least)
            if not len(chosen):
                return
            # Exchanges become fewer from round to round.
            most = max(most, len(chosen))
            on_share(0.5 - 0.5 * len(chosen) / most)
            saved = self.save()
            self._exchange(chosen)
            total = self.kept()
            if total <= self.total:
                self.restore(saved)
                return
            self.total = total

    def shake(self, random: np.random.Generator) -> None:
        """Exchange a few channels at random."""
        count = min(_SHAKEN, len(self.places) // 2)
        pairs = random.permutation(len(self.places))[: 2 * count].reshape(-1, 2)
        self._exchange(pairs)
        self.total = self.kept()

    def save(self) -> tuple[Array, Array, float, list[Array]]:
        return self.order.copy(), self.gains.copy(), self.total, [c.copy() for c in self.columns]

    def restore(self, saved: tuple[Array, Array, float, list[Array]]) -> None:
        self.order, self.gains, self.total, self.columns = saved

    def _choose(self, least: float) -> Array:
        """The best exchanges, no two of them in one group: (count, 2) places."""
        both = self.gains + self.gains.T
        partner = both.argmax(axis=1)
        gain = both[self.places, partner]
        taken = [np.zeros(int(groups.max()) + 1, bool) for groups in self.groups]
        chosen = []
        for place in np.argsort(-gain, kind="stable"):
            if gain[place] <= least:
                break
            pair = np.array([place, partner[place]])
            if any(
                used[groups[pair]].any() for used, groups in zip(taken, self.groups, strict=True)
            ):
                continue
            for used, groups in zip(taken, self.groups, strict=True):
                used[groups[pair]] = True
            chosen.append(pair)
        return np.array(chosen).reshape(-1, 2)

    def _exchange(self, pairs: Array) -> None:
        """Exchange disjoint pairs of places, and bring the gains up to date."""
        there, back = pairs.reshape(-1), pairs[:, ::-1].reshape(-1)
        self.order[there] = self.order[back]
        for columns, lead in zip(self.columns, self.leads, strict=True):
            columns[lead + there] = columns[lead + back]
        self.gains[:, there] = self.gains[:, back]
        touched = np.zeros(len(self.places), bool)
        for groups in self.groups:
            touched |= np.isin(groups, groups[there])
        self._compute(np.flatnonzero(touched), self.gains)

    def _compute(self, places: Array, gains: Array) -> None:
        """Compute the rows of `places` of the gains."""
        gains[places] = 0.0
        channels = len(self.places)
        for columns, lead, groups in zip(self.columns, self.leads, self.groups, strict=True):
            own = columns[lead : lead + channels]
            thresholds = self._thresholds(columns, lead, places)
            # Rows do not depend on each other, and numpy lets go of the interpreter meanwhile.
            if len(places) * own.size < _WORK_PER_LOOK:
                sums = self._sums(own, thresholds)
            else:
                parts = np.array_split(thresholds, self.threads)
                with ThreadPoolExecutor(self.threads) as pool:
                    sums = np.concatenate(list(pool.map(partial(self._sums, own), parts)))
            # What a place keeps with the channel that stands there is the sum at that channel.
            sums -= sums[np.arange(len(places)), places][:, None]
            sums[groups[places][:, None] == groups] = 0.0
            gains[places] += sums
        self.deadline.check()

    def _sums(self, own: Array, thresholds: Array) -> Array:
        """[p, q]: the sum over rows of max(thresholds[p], own[q]), float32."""
        channels, rows = own.shape
        width, since = max(_BLOCK // rows, 1), 0
        space, ones = np.empty((width, rows), np.float32), np.ones(rows, np.float32)
        sums = np.empty((len(thresholds), channels), np.float32)
        for begin in range(0, channels, width):
            block = own[begin : begin + width]
            maxima = space[: len(block)]
            for index, threshold in enumerate(thresholds):
                np.maximum(block, threshold, out=maxima)
                np.dot(maxima, ones, out=sums[index, begin : begin + len(block)])
                since += block.size
                if since > _WORK_PER_LOOK:
                    self.deadline.check()
                    since = 0
        return sums

    def _thresholds(self, columns: Array, lead: int, places: Array) -> Array:
        """B: for each place the n-th largest of the others in its group, (places, rows)."""
        grouped = columns.reshape(-1, self.m, columns.shape[1])
        numbers, which = np.unique((places + lead) // self.m, return_inverse=True)
        ranked = np.sort(grouped[numbers], axis=1)
        # Of m - 1 others: one rank lower where the place itself is among the n largest.
        nth, next_one = ranked[:, self.m - self.n], ranked[:, self.m - self.n - 1]
        own = columns[lead + places]
        return np.where(own >= nth[which], next_one[which], nth[which])
