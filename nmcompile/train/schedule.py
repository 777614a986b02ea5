"""How far a method is between two epochs."""

from __future__ import annotations

import math
from typing import Literal, get_args

from nmcompile.errors import PatternError

Schedule = Literal["linear", "cos", "exp", "cubic"]

EXP_RATE = 0.05  # of "exp", per epoch


def last_epoch(start: int, end: int | None, epochs: int) -> int:
    """The epoch at which a method is done: `end`, or after three quarters of the epochs."""
    return max(start, 3 * epochs // 4) if end is None else end


def progress(epoch: int, start: int, end: int) -> float:
    """0 up to the epoch `start`, 1 from `end` on, linear between."""
    if epoch >= end:
        return 1.0
    return 0.0 if epoch <= start else (epoch - start) / (end - start)


def check_schedule(schedule: Schedule) -> None:
    """Refuse what is no schedule.

    Raises:
        PatternError: there is no such schedule.
    """
    if schedule not in get_args(Schedule):
        known = ", ".join(get_args(Schedule))
        raise PatternError(f"schedule {schedule!r} is not known; expected one of {known}")


def passed(schedule: Schedule, epoch: int, start: int, end: int) -> float:
    """Share of the way that is behind: 0 up to the epoch `start`, 1 from `end` on, rising between.

    "cubic" and "cos" are slow at first and fast at last; "exp" is the other way round, and there
    one epoch early.

    Source: the code of Xiang et al., NeurIPS 2023, github.com/JingyangXiang/SUBP.
    """
    done = progress(epoch, start, end)
    if done in (0.0, 1.0) or schedule == "linear":
        return done
    if schedule == "cos":
        return 1.0 - math.cos(0.5 * math.pi * done)
    if schedule == "exp":
        return math.expm1(-EXP_RATE * (epoch - start)) / math.expm1(-EXP_RATE * (end - start - 1))
    return done**3
