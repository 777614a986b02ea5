"""From run files to what the report shows of each case: no text, no pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nmcompile.bench.baselines import DENSE, baseline_of
from nmcompile.bench.engines.table import OURS
from nmcompile.bench.ratios import ratio_interval
from nmcompile.bench.results import LOCAL, Case, Roofs, Run
from nmcompile.machine.describe import Machine

ROUNDS: Final = 5  # fewer say nothing about the spread
PRECISIONS: Final = ("-f32", "-bf16", "-int8")  # how engines of several are called


@dataclass(frozen=True, eq=False)
class Site:
    """Where cases ran: a run, and the device if it was a remote one.

    name: unique among the sites of a report.
    """

    index: int
    name: str
    run: Run
    device: str

    @property
    def machine(self) -> Machine:
        """That the cases ran on."""
        return self.run.devices.get(self.device, self.run.machine)

    @property
    def roofs(self) -> Roofs | None:
        """Of the machine."""
        return self.run.roofs_of(self.device)


@dataclass(frozen=True, eq=False)
class Entry:
    """A case and what it is compared with.

    baseline: as `nmcompile.bench.baselines.baseline_of` says; None for peers, and where there is
        none.
    ratio: time of the baseline over time of the case, above 1 where the case is faster: the median
        over their common rounds, or else of the medians.
    interval: 95 % of that ratio, None with fewer than 5 common rounds or without turns in common.
    """

    site: Site
    case: Case
    baseline: Case | None
    ratio: float | None
    interval: tuple[float, float] | None

    @property
    def ours(self) -> bool:
        """Whether nmcompile ran it."""
        return self.case.engine == OURS

    @property
    def dense(self) -> bool:
        """Whether all weights are kept."""
        return self.case.density > DENSE

    @property
    def ms(self) -> float:
        """Median of one run of the batch; NaN without samples."""
        median = self.case.median_ms
        return math.nan if median is None else median

    @property
    def image_ms(self) -> float:
        """Median for one image of the batch."""
        return self.ms / self.case.batch

    @property
    def measured(self) -> bool:
        """Whether it has samples; a clock that saw no time pass measured nothing."""
        return bool(self.case.median_ms)

    @property
    def spread(self) -> float | None:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.case.samples_ms) < 4:
            return None
        low, _, high = statistics.quantiles(self.case.samples_ms, n=4, method="inclusive")
        return (high - low) / 2 / self.ms if self.ms else None


def find_sites(runs: Sequence[Run]) -> list[Site]:
    """The places of all cases, in the order of the runs; names tell them apart."""
    places: list[tuple[Run, str]] = []
    for run in runs:
        devices = list(dict.fromkeys(case.device for case in run.cases)) or [LOCAL]
        places += [(run, device) for device in devices]
    names = [_place(run, device) for run, device in places]
    if len(set(names)) < len(names):
        dated = [
            f"{name}, {run.started[:16]}" for name, (run, _) in zip(names, places, strict=True)
        ]
        names = [d if names.count(n) > 1 else n for n, d in zip(names, dated, strict=True)]
    sites = []
    for index, (name, (run, device)) in enumerate(zip(names, places, strict=True)):
        again = names[:index].count(name)
        sites.append(Site(index, f"{name} ({again + 1})" if again else name, run, device))
    return sites


def _place(run: Run, device: str) -> str:
    name = run.label or run.machine.cpu or "a machine"
    if device == LOCAL:
        return name
    remote = run.devices.get(device)
    return f"{run.label or (remote.cpu if remote else '') or 'a device'}, {device}"


def find_entries(sites: Iterable[Site]) -> list[Entry]:
    """All cases with their baselines, peers before ours within a setting, then by density."""
    found = []
    for site in sites:
        models = {model.name: index for index, model in enumerate(site.run.models)}
        cases = [case for case in site.run.cases if case.device == site.device]
        entries = [_entry(site, case, cases) for case in cases]
        found += sorted(
            entries,
            key=lambda entry: (
                *(models[entry.case.model], entry.case.threads, entry.case.batch, entry.ours),
                *(family_rank(entry.case), -entry.case.density),
            ),
        )
    return found


def _entry(site: Site, case: Case, cases: Sequence[Case]) -> Entry:
    baseline = _baseline(case, cases)
    if baseline is None or not case.median_ms:
        return Entry(site, case, None, None, None)
    slow, fast = baseline.samples_ms, case.samples_ms
    rounds = min(len(slow), len(fast))
    if baseline.group == case.group and rounds >= ROUNDS:
        found = ratio_interval(slow[:rounds], fast[:rounds])
        return Entry(site, case, baseline, found.value, (found.low, found.high))
    ratio = statistics.median(slow) / statistics.median(fast)
    return Entry(site, case, baseline, ratio, None)


def _baseline(case: Case, cases: Sequence[Case]) -> Case | None:
    """Among the cases that took turns with this one, or else had its setting."""
    setting = (case.model, case.threads, case.batch)
    others = [
        other
        for other in cases
        if other is not case
        and other.median_ms
        and (other.model, other.threads, other.batch) == setting
    ]
    return baseline_of(case, [other for other in others if other.group == case.group] or others)


def family(case: Case) -> str:
    """What cases of several densities have in common: "1x16", "N:M", "unstructured", "dense"."""
    name = case.pattern.partition("@")[0]
    if case.density > DENSE:
        return "dense"
    if ":" in name:
        return "N:M"
    return name or "as given"


def family_rank(case: Case) -> tuple[int, str]:
    """An order for families: dense, 1xN, N:M, the rest."""
    name = family(case)
    order = {"dense": 0, "N:M": 2, "unstructured": 3}
    return order.get(name, 4 if name == "as given" else 1), name


def pattern_name(case: Case) -> str:
    """The pattern as people say it: "1x16, 25% kept"."""
    name, _, density = case.pattern.partition("@")
    try:
        return f"{name}, {float(density):.0%} kept" if density else name or "as given"
    except ValueError:  # "2:4@flat" names an axis
        return f"{name}, {density}"


def engine_name(case: Case, common: str = "float32") -> str:
    """The engine, with its dtype where that is not the common one and its name does not say it."""
    said = case.dtype == common or case.engine.endswith(PRECISIONS)
    return case.engine if said else f"{case.engine} {case.dtype}"


def setting(case: Case) -> str:
    """Threads and batch in words: "2 threads, batch 1"."""
    return f"{case.threads} thread{'s' * (case.threads != 1)}, batch {case.batch}"
