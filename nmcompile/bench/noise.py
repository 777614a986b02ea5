"""Whether a measurement can be believed: how wide its interval is, and who else was there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nmcompile.bench.ratios import Interval
from nmcompile.machine.load import Load

Verdict = Literal["quiet", "noisy", "busy"]
WIDE = 0.06  # width of an interval, as a share of the ratio: no more than 3 % to either side
FEW = 5  # rounds: an interval of fewer says nothing


def judge(interval: Interval | None, samples: Sequence[float], load: Load) -> tuple[Verdict, str]:
    """The verdict and its reason; "quiet" gives none.

    A busy machine is one even where the interval is narrow: a process that takes half of a core
    slows the engine with the longer runs more, and does so in every round.
    """
    if not samples:
        return "quiet", ""
    if load.reason:
        return "busy", f"{load.reason}: measure again when it is idle"
    if len(samples) < FEW:
        return "noisy", f"{len(samples)} rounds are too few to tell: measure more"
    assert interval is not None
    if interval.width > WIDE:
        return "noisy", (
            f"after {len(samples)} rounds the interval is {interval.width:.1%} of the value wide: "
            "measure more rounds, or on a quieter machine"
        )
    return "quiet", ""
