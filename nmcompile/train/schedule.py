"""How far a method is between two epochs."""

from __future__ import annotations

import math
from typing import Literal, get_args

from nmcompile.errors import PatternError

Schedule = Literal["linear", "cos", "exp", "cubic"]

EXP_RATE = 5.0  # of "exp": e^-5 of the way is left at the end, and taken off


def last_epoch(start: int, end: int | None, epochs: int) -> int:
    """The epoch at which a method is done: `end`, or after three quarters of the epochs."""
    return max(start, 3 * epochs // 4) if end is None else end


def progress(epoch: int, start: int, end: int) -> float:
    """0 up to the epoch `start`, 1 from `end` on, linear between."""
    if epoch >= end:
        return 1.0
    return 0.0 if epoch <= start else (epoch - start) / (end - start)


def remaining(schedule: Schedule, done: float) -> float:
    """Share that is left: 1 for done = 0, 0 for done = 1, falling between.

    Raises:
        PatternError: there is no such schedule.
    """
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cos":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "exp":
        last = math.exp(-EXP_RATE)
        return (math.exp(-EXP_RATE * done) - last) / (1.0 - last)
    if schedule == "cubic":
        return (1.0 - done) ** 3
    known = ", ".join(get_args(Schedule))
    raise PatternError(f"schedule {schedule!r} is not known; expected one of {known}")
