"""Which case the others of a group are held against, and how much faster each is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nmcompile.bench.engines.table import OURS
from nmcompile.bench.ratios import Interval, median_interval, ratio_interval
from nmcompile.bench.results import Case


def groups_of(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by group, in order."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return groups


def anchor_of(group: Sequence[Case]) -> Case | None:
    """The fastest float32 case of another engine; without one, ours on dense weights.

    Engines whose time depends on the weights count with dense ones only. None where nothing else
    was measured.
    """
    measured = [case for case in group if case.samples_ms]
    peers = [
        case
        for case in measured
        if case.engine != OURS and case.dtype == "float32" and case.pattern in ("", "dense")
    ]
    if peers:
        return min(peers, key=lambda case: case.median_ms or 0.0)
    ours = [case for case in measured if case.pattern == "dense"]
    return ours[0] if ours and len(measured) > 1 else None


def speedup(case: Case, anchor: Case | None) -> Interval | None:
    """How many times faster a case is than its group's anchor; None for the anchor itself.

    Only rounds that both have are compared.
    """
    if anchor is None or anchor is case or not case.samples_ms or not anchor.samples_ms:
        return None
    rounds = min(len(case.samples_ms), len(anchor.samples_ms))
    return ratio_interval(anchor.samples_ms[:rounds], case.samples_ms[:rounds])


def certainty(case: Case, anchor: Case | None) -> Interval | None:
    """What the noise is judged by: the speed-up, or else the median."""
    if not case.samples_ms:
        return None
    return speedup(case, anchor) or median_interval(case.samples_ms)
