"""Medians, and how sure their ratios are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds that hold with 95 %."""

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval, as a share of the estimate."""
        return (self.high - self.low) / self.value if self.value else math.inf

    def widened(self, share: float) -> Interval:
        """With bounds further out by a share of themselves: for errors that sampling cannot see."""
        return Interval(self.value, self.low / (1 + share), self.high * (1 + share))


def median_interval(samples: Sequence[float], seed: int = 0) -> Interval:
    """Of the median of one list.

    Raises:
        ValueError: it is empty.
    """
    return _interval(float(np.median(samples)), _medians(samples, len(samples), seed)[0])


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], seed: int = 0
) -> Interval:
    """Of the ratio of the medians of two lists whose elements i belong to the same round.

    Rounds are drawn together for both, so what both had to bear cancels out, and in runs of
    neighbours, because a slow moment lasts for several (a moving block bootstrap: Künsch, 1989).

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"expected pairs, found {len(numerator)} and {len(denominator)} samples")
    above, below = _medians(np.stack([numerator, denominator]), len(numerator), seed)
    return _interval(float(np.median(numerator) / np.median(denominator)), above / below)


def log_ratios(
    numerator: Sequence[float], others: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, npt.NDArray[Any]]:
    """Logarithm of a list's median over the geometric mean of those of other lists.

    Returns:
        The estimate, and one draw per resample, for intervals of what is computed from several.
    """
    lists = np.stack([numerator, *others])
    drawn = np.log(_medians(lists, lists.shape[1], seed))
    found = np.log(np.median(lists, axis=1))
    if not others:
        return float(found[0]), drawn[0]
    return float(found[0] - found[1:].mean()), drawn[0] - drawn[1:].mean(axis=0)


def interval_of(value: float, draws: npt.NDArray[Any]) -> Interval:
    """Of an estimate with its resamples; the estimate itself is never outside."""
    return _interval(value, draws)


def _interval(value: float, draws: npt.NDArray[Any]) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def _medians(lists: npt.ArrayLike, count: int, seed: int) -> npt.NDArray[Any]:
    """Medians (lists, RESAMPLES) of resampled rounds, the same rounds for all lists."""
    if count == 0:
        raise ValueError("expected samples, found none")
    values = np.atleast_2d(np.asarray(lists, np.float64))
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(seed)
    starts = random.integers(count, size=(RESAMPLES, math.ceil(count / length)))
    # Blocks run on from the last round to the first, so that every round is as likely.
    picked = (starts[:, :, None] + np.arange(length)) % count
    picked = picked.reshape(RESAMPLES, -1)[:, :count]
    return np.asarray(np.median(values[:, picked], axis=2))
