"""The density up to which sparsity pays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def break_even(densities: Sequence[float], speed_ups: Sequence[float]) -> float | None:
    """The density up to which a line stays at a speed-up of 1 or more.

    Interpolates in time over density, which is nearly straight: time = overhead + density * work.

    Args:
        densities: any order, at least one.
        speed_ups: for each density.

    Returns:
        The highest density if the line is nowhere below 1, None if it begins below.
    """
    points = sorted(zip(densities, speed_ups, strict=True))
    if points[0][1] < 1:
        return None
    for (low, fast), (high, slow) in itertools.pairwise(points):
        if slow < 1:
            below, above = 1 / fast, 1 / slow
            return low + (high - low) * (1 - below) / (above - below)
    return points[-1][0]
