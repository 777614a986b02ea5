"""Which case another is held against, and how much faster it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nmcompile.bench.engines.table import OURS
from nmcompile.bench.ratios import Interval, median_interval, ratio_interval
from nmcompile.bench.results import Case

DENSE = 0.999  # a density above is no sparsity


def groups_of(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by group, in order."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return groups


def baseline_of(case: Case, others: Sequence[Case]) -> Case | None:
    """What the speed of one of our cases is told against, of the cases of one setting.

    The fastest other engine that ran all weights or the same pattern, in the same element type
    where there is one; without one, ours on dense weights. None for other engines' cases.
    """
    if case.engine != OURS:
        return None
    peers = [
        other
        for other in others
        # One that gains from sparsity is no measure for another pattern.
        if other.engine != OURS
        and other.samples_ms
        and other.pattern in ("", "dense", case.pattern)
    ]
    peers = [peer for peer in peers if peer.dtype == case.dtype] or peers
    return _fastest(peers) or _fastest(
        [
            other
            for other in others
            if other is not case
            and other.engine == OURS
            and other.samples_ms
            and other.density > DENSE
            and (other.target, other.dtype) == (case.target, case.dtype)
        ]
    )


def anchor_of(group: Sequence[Case]) -> Case | None:
    """What the noise of a group's cases is judged against: the fastest other engine, or ours.

    Engines whose time depends on the weights count with dense ones only. None where nothing else
    was measured.
    """
    measured = [case for case in group if case.samples_ms]
    dense = [case for case in measured if case.pattern in ("", "dense")]
    peers = [case for case in dense if case.engine != OURS]
    return _fastest(peers) or (_fastest(dense) if len(measured) > 1 else None)


def _fastest(cases: Sequence[Case]) -> Case | None:
    return min(cases, key=lambda case: case.median_ms or 0.0, default=None)


def speedup(case: Case, anchor: Case | None) -> Interval | None:
    """How many times faster a case is than another of its group; None for itself.

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
