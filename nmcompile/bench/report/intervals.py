"""How sure a ratio of two latencies is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

ROUNDS: Final = 5  # fewer say nothing about the spread
_RESAMPLES: Final = 1000
_SEED: Final = 0


def ratio_interval(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of median(slow) / median(fast), by bootstrap over rounds.

    Sample i of both is of one round, and they are drawn together: a slow minute of the machine
    that both met cancels. Where one was cut off, the rounds that both have count.

    Raises:
        ValueError: there is no round.
    """
    rounds = min(len(slow), len(fast))
    if rounds == 0:
        raise ValueError("expected at least one round, found none")
    drawn = np.random.default_rng(_SEED).integers(0, rounds, (_RESAMPLES, rounds))
    above = np.median(np.asarray(slow[:rounds], float)[drawn], axis=1)
    below = np.median(np.asarray(fast[:rounds], float)[drawn], axis=1)
    low, high = np.percentile(above / below, (2.5, 97.5))
    return float(low), float(high)
