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
    if not len(samples):
        raise ValueError("expected samples, found none")
    value, draws = log_ratios(samples, None, seed)
    return interval_of(value, draws)


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], seed: int = 0
) -> Interval:
    """Of the median over rounds of the ratio of two lists, whose elements i are of one round.

    Round by round, because what both engines had to bear at a moment cancels out there, and does
    not in the ratio of the lists' medians, which may be of different moments.

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if len(numerator) != len(denominator):
        raise ValueError(f"expected pairs, found {len(numerator)} and {len(denominator)} samples")
    value, draws = log_ratios(numerator, denominator, seed)
    return interval_of(value, draws)


def log_ratios(
    numerator: Sequence[float], denominator: Sequence[float] | None, seed: int = 0
) -> tuple[float, npt.NDArray[Any]]:
    """Median over rounds of the logarithm of a time over another, or of the time itself.

    Returns:
        The estimate, and one draw per resample, for intervals of what is computed from several.
    """
    logs = np.log(np.asarray(numerator, np.float64))
    if denominator is not None:
        logs = logs - np.log(np.asarray(denominator, np.float64))
    return float(np.median(logs)), _medians(logs, seed)


def interval_of(value: float, draws: npt.NDArray[Any]) -> Interval:
    """Of a logarithm with its resamples; the estimate itself is never outside."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(
        math.exp(value), math.exp(min(float(low), value)), math.exp(max(float(high), value))
    )


def _medians(values: npt.NDArray[Any], seed: int) -> npt.NDArray[Any]:
    """RESAMPLES medians of resampled rounds.

    Rounds are drawn in runs of neighbours, because a slow moment lasts for several (a moving block
    bootstrap: Künsch, Annals of Statistics 1989). Of few rounds that leaves too little variety:
    the draws are spread by what makes 95 % of 95 % on lists whose truth is known.
    """
    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(seed)
    starts = random.integers(count, size=(RESAMPLES, math.ceil(count / length)))
    # Blocks run on from the last round to the first, so that every round is as likely.
    picked = (starts[:, :, None] + np.arange(length)) % count
    drawn = np.median(values[picked.reshape(RESAMPLES, -1)[:, :count]], axis=1)
    middle = np.median(values)
    return np.asarray(middle + (drawn - middle) * (1 + 2 * length / count))
