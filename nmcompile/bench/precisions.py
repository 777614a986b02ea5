"""Cases of one pattern in several precisions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nmcompile.bench.baselines import groups_of, speedup
from nmcompile.bench.engines.table import OURS
from nmcompile.bench.results import Case


@dataclass(frozen=True)
class Half:
    """One precision of a line.

    peer: the fastest other engine with all weights in this precision; None without one.
    ours: our case.
    ratio: how many times faster ours is, round by round; None without a peer or samples.
    """

    peer: Case | None
    ours: Case
    ratio: float | None


@dataclass(frozen=True)
class Line:
    """One pattern of a model in a setting; `halves` by precision, which may be missing."""

    model: str
    threads: int
    batch: int
    pattern: str
    halves: dict[str, Half] = field(default_factory=dict)

    @property
    def any(self) -> Case:
        """One of our cases."""
        return next(iter(self.halves.values())).ours

    def gain(self, low: str, high: str = "float32") -> float | None:
        """How many times faster ours is in one precision than in another."""
        if low not in self.halves or high not in self.halves:
            return None
        found = speedup(self.halves[low].ours, self.halves[high].ours)
        return found.value if found else None


def our_dtypes(cases: Sequence[Case]) -> list[str]:
    """The precisions that we ran in, float32 first."""
    found = dict.fromkeys(case.dtype for case in cases if case.engine == OURS)
    return sorted(found, key=lambda dtype: dtype != "float32")


def lines_of(cases: Sequence[Case]) -> list[Line]:
    """A line per pattern of each group, in order; of several targets of one precision the first."""
    lines: list[Line] = []
    for group in groups_of(cases).values():
        found: dict[str, Line] = {}
        for case in group:
            if case.engine != OURS or not case.samples_ms:
                continue
            line = found.setdefault(
                case.pattern, Line(case.model, case.threads, case.batch, case.pattern)
            )
            if case.dtype not in line.halves:
                peer = dense_peer(case, group)
                ratio = speedup(case, peer)
                line.halves[case.dtype] = Half(peer, case, ratio.value if ratio else None)
        lines += found.values()
    return lines


def dense_peer(case: Case, group: Sequence[Case]) -> Case | None:
    """The fastest other engine that ran all weights in the precision of a case."""
    peers = [
        other
        for other in group
        if other.engine != OURS
        and other.samples_ms
        and other.dtype == case.dtype
        and other.pattern in ("", "dense")
    ]
    return min(peers, key=lambda peer: peer.median_ms or 0.0, default=None)
