"""What has changed between two runs, and which of it is no noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nmcompile.bench.baselines import groups_of
from nmcompile.bench.engines.table import ENGINES, OURS
from nmcompile.bench.ratios import Interval, interval_of, log_ratios
from nmcompile.bench.results import Case, Run

# Of a time: what two runs of one build differ by, beyond what their rounds show. Eleven runs on a
# quiet machine differ by at most 2.5 % in all for models of 6 and 11 ms, by 10 % for one of 1.5 ms.
FLOOR = 0.02
BUSY_FLOOR = 0.10  # where other processes were there: they do not slow all engines alike
THRESHOLD = 0.05  # of a time: slower by less is no regression

Verdict = Literal["slower", "faster", "within noise"]


@dataclass(frozen=True)
class Change:
    """One case in both runs.

    before, after: the cases.
    ratio: time after over time before, above 1 is slower.
    against: the engines that both times are held against, so that what the machine as a whole
        does cancels out; none where the times themselves are compared.
    verdict: whether the interval leaves "no change" out.
    """

    before: Case
    after: Case
    ratio: Interval
    against: tuple[str, ...]
    verdict: Verdict

    def is_regression(self, threshold: float) -> bool:
        """Whether ours is slower, for certain, and by more than the threshold."""
        return (
            self.after.engine == OURS
            and self.verdict == "slower"
            and self.ratio.value > 1 + threshold
        )


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    changes: one per case that both have measured, in the order of the first.
    only_before, only_after: cases that one run has not measured.
    warnings: what makes the runs hard to compare.
    """

    changes: list[Change] = field(default_factory=list)
    only_before: list[Case] = field(default_factory=list)
    only_after: list[Case] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def regressions(self, threshold: float) -> list[Change]:
        """What `nmc bench compare` exits with 1 for."""
        return [change for change in self.changes if change.is_regression(threshold)]


def compare(before: Run, after: Run) -> Comparison:
    """Pair the cases of two runs and judge each.

    A case is judged by its time over that of an engine of its group that is the same in both runs
    and whose time does not depend on the weights. Where there are several, the one counts that
    shows least: what only one of them shows is its own. The interval comes from resampled rounds of
    both runs, and is widened by a floor, because memory and cores differ from run to run in a way
    that the rounds of one do not show.
    """
    left, right = _by_key(before), _by_key(after)
    result = Comparison(
        only_before=[case for key, case in left.items() if key not in right],
        only_after=[case for key, case in right.items() if key not in left],
        warnings=_warnings(before, after),
    )
    groups = groups_of(left.values()), groups_of(right.values())
    for key, old in left.items():
        if key in right:
            new = right[key]
            pairs = _references(old, groups[0][old.group], groups[1][new.group])
            result.changes.append(_judge(old, new, pairs))
    return result


def _judge(old: Case, new: Case, pairs: Sequence[tuple[Case, Case]]) -> Change:
    floor = BUSY_FLOOR if "busy" in (old.noise, new.noise) else FLOOR
    held: list[tuple[Case, Case] | None] = [*pairs] or [None]
    found = [_ratio(old, new, pair).widened(floor) for pair in held]
    ratio = min(found, key=lambda interval: abs(math.log(interval.value)))
    verdict: Verdict = "within noise"
    if all(interval.low > 1 for interval in found):
        verdict = "slower"
    elif all(interval.high < 1 for interval in found):
        verdict = "faster"
    return Change(old, new, ratio, tuple(a.engine for a, _ in pairs), verdict)


def _ratio(old: Case, new: Case, pair: tuple[Case, Case] | None) -> Interval:
    """Time after over time before, each over that of a reference."""
    then, draws_then = log_ratios(*_lists(old, pair and pair[0]), seed=0)
    now, draws_now = log_ratios(*_lists(new, pair and pair[1]), seed=1)
    return interval_of(now - then, draws_now - draws_then)


def _lists(case: Case, other: Case | None) -> tuple[list[float], list[float] | None]:
    """The rounds that both have."""
    if other is None:
        return case.samples_ms, None
    rounds = min(len(case.samples_ms), len(other.samples_ms))
    return case.samples_ms[:rounds], other.samples_ms[:rounds]


def _references(
    case: Case, before: Sequence[Case], after: Sequence[Case]
) -> list[tuple[Case, Case]]:
    """What the case's time is held against: the same engines of the same version in both groups."""
    steady = {row.name for row in ENGINES if not row.sees_zeros}
    found = []
    for old in before:
        if old.engine not in steady or old.key == case.key:
            continue
        for new in after:
            if new.key == old.key and new.engine_version == old.engine_version:
                found.append((old, new))
    return found


def _by_key(run: Run) -> dict[tuple[str, ...], Case]:
    return {case.key: case for case in run.cases if case.samples_ms}


def _warnings(before: Run, after: Run) -> list[str]:
    found = []
    a, b = before.machine, after.machine
    for name in ("cpu", "family_model", "cores", "memory_bytes", "governor", "gpus", "system"):
        if getattr(a, name) != getattr(b, name):
            found.append(f"the machines differ in {name}: {getattr(a, name)}, {getattr(b, name)}")
    for name in sorted(before.versions.keys() | after.versions.keys()):
        old, new = before.versions.get(name, "none"), after.versions.get(name, "none")
        if old != new and name != "nmcompile":
            found.append(f"the versions of {name} differ: {old}, {new}")
    for when, run in (("first", before), ("second", after)):
        if not run.complete:
            found.append(f"the {when} run is not complete")
        loud = [case for case in run.cases if case.noise != "quiet"]
        if loud:
            found.append(f"{len(loud)} cases of the {when} run are noisy: {loud[0].noise_reason}")
    digests = {model.name: model.digest for model in before.models}
    for model in after.models:
        if digests.get(model.name, model.digest) != model.digest:
            found.append(f"the model {model.name} is another one: its digest differs")
    return found
