"""A benchmark run: prepares models, times groups, judges the noise, and keeps what was measured."""

from __future__ import annotations

import contextlib
import datetime
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nmcompile.bench.cores import Cores
from nmcompile.bench.engines import OURS
from nmcompile.bench.group import GroupRun, Limits
from nmcompile.bench.matrix import Group
from nmcompile.bench.preparation import RANDOM, Preparation
from nmcompile.bench.remaining import TimeLeft
from nmcompile.bench.results import Case, Model, Roofs, Run, Settings
from nmcompile.bench.sources import Source
from nmcompile.errors import NmcompileError
from nmcompile.machine.describe import PACKAGES, Machine, describe_machine, package_versions
from nmcompile.progress import Progress, silent

LONGER = 3  # times the rounds that were asked for, at most, where the intervals stay wide


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    sources: every model of the groups.
    groups: in the order of their measurement, those of one model and batch together.
    rounds, warmup: timed and untimed turns of every case.
    pin: keep to as many cores as there are threads.
    patience: seconds to wait in all, on several threads, for cores that share a cache.
    budget_s, memory_bytes: limits of the run, None for none.
    data, samples: labelled images, and how many of them to take.
    """

    sources: Sequence[Source]
    groups: Sequence[Group]
    rounds: int = 30
    warmup: int = 3
    pin: bool = True
    patience: float = 60.0
    budget_s: float | None = None
    memory_bytes: int | None = None
    data: Path | None = None
    samples: int = 200
    label: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a model could not be measured at all, or a case; declined: that is no failure."""

    what: str
    why: str
    declined: bool


@dataclass(frozen=True)
class Outcome:
    """A run, what went wrong in it, whether ctrl-C ended it, and what else there is to say."""

    run: Run
    failures: tuple[Failure, ...]
    interrupted: bool
    notes: tuple[str, ...] = ()


def run_plan(
    plan: Plan,
    *,
    progress: Progress = silent,
    on_group: Callable[[Run], object] = lambda run: None,
    now: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure everything that the limits allow.

    Args:
        plan: what.
        progress: told about every stage, with the time left.
        on_group: given the run so far after every group, so that it can be saved.
        now: monotonic seconds.

    Returns:
        The run; cases that failed hold the reason, those that were not reached are not in it.
        After ctrl-C or the end of the time it holds the whole rounds until then, and is not
        `complete`.
    """
    return _Runner(plan, progress, on_group, now).run()


class _Runner:
    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        on_group: Callable[[Run], object],
        now: Callable[[], float],
    ) -> None:
        self.plan, self.progress, self.on_group, self.now = plan, progress, on_group, now
        self.begin, self.started = now(), datetime.datetime.now(datetime.UTC)
        self.cores = Cores(patience=plan.patience)
        self.machine, self.pinned = describe_machine(), list[int]()
        self.models: list[Model] = []
        self.cases: list[Case] = []
        self.failures: list[Failure] = []
        self.interrupted = self.late = False
        self.calibration = ""
        prepared = {(group.model, group.batch) for group in plan.groups}
        self.rounds = plan.warmup + plan.rounds  # of a group that is not noisy
        self.left = TimeLeft({"prepare": len(prepared), "round": len(plan.groups) * self.rounds})

    def run(self) -> Outcome:
        from nmcompile import runtime

        # Before TVM starts its threads: the pool can shrink later, not grow.
        runtime.configure_environment()
        with contextlib.suppress(KeyboardInterrupt):
            self.interrupted = True  # unless what follows gets to its end
            for source in self.plan.sources:
                self._measure_source(source)
            self.interrupted = False
        notes = [calibration_note(self.calibration)] if self.calibration else []
        return Outcome(self._result(), tuple(self.failures), self.interrupted, tuple(notes))

    def _measure_source(self, source: Source) -> None:
        groups = [group for group in self.plan.groups if group.model == source.name]
        for batch in dict.fromkeys(group.batch for group in groups):
            mine = [group for group in groups if group.batch == batch]
            if self._spent():
                self.late = True
                return
            with tempfile.TemporaryDirectory(prefix="nmc-bench-") as folder:
                ready = Preparation(source, batch, Path(folder), self.plan.data, self.plan.samples)
                self._prepare(source, mine, ready)
                for group in mine:
                    self._measure_group(source, group, ready)

    def _prepare(self, source: Source, groups: Sequence[Group], ready: Preparation) -> None:
        """Compile and export all that the groups need; their cases say what failed."""
        begin = self.now()
        for setting in groups[0].settings:
            shown = f"{source.name}: {setting.engine.name} {setting.pattern.text}".strip()

            def report(stage: str, done: int = 0, total: int = 0, shown: str = shown) -> None:
                self.progress(f"{shown}: {stage}{self.left}", done, total)

            report("preparing")
            with contextlib.suppress(NmcompileError):
                variant = ready.variant(setting.pattern)
                self._describe(source, variant.macs // max(variant.batch, 1))
                variant.form_of(setting.engine, setting.target, report)
        self.left.add("prepare", 1, self.now() - begin)
        self.calibration = ready.calibration or self.calibration

    def _describe(self, source: Source, macs: int) -> None:
        if all(model.name != source.name for model in self.models):
            self.models.append(source.describe(macs))

    def _measure_group(self, source: Source, group: Group, ready: Preparation) -> None:
        if self._spent():
            self.late = True
            return
        clock = _RoundClock(self.left, self.rounds, self.now)
        timed = GroupRun(group, ready, self._limits(group), self.cores)
        try:
            timed.measure(functools.partial(self._report, group, clock))
        finally:
            self.cases += timed.cases()
            self.pinned = max(self.pinned, timed.pinned, key=len)
            clock.end()
            for what, error in timed.errors():
                self.failures.append(Failure(what, str(error), error.declined))
            # A file names the models of its cases, also of those that could not be opened.
            if any(case.model == source.name for case in self.cases):
                with contextlib.suppress(NmcompileError):
                    self._describe(source, 0)
                self.cases = [c for c in self.cases if c.model in {m.name for m in self.models}]
        self.late = self.late or timed.late
        if timed.stopped == "interrupt":
            raise KeyboardInterrupt
        self.on_group(self._result(complete=False))

    def _report(self, group: Group, clock: _RoundClock, stage: str, done: int, total: int) -> None:
        clock.see(stage)
        threads = f"{group.threads} thread{'s' * (group.threads > 1)}"
        self.progress(f"{group.model}, {threads}: {stage}{self.left}", done, total)

    def _limits(self, group: Group) -> Limits:
        """An equal share of the time left for every group that is still to come."""
        plan, deadline = self.plan, None
        if plan.budget_s is not None:
            todo = len(plan.groups) - plan.groups.index(group)
            rest = self.begin + plan.budget_s - self.now()
            deadline = self.now() + rest / todo
        return Limits(
            plan.rounds, LONGER * plan.rounds, plan.warmup, plan.pin, deadline, plan.memory_bytes,
            self._roofs, self.now,
        )  # fmt: skip

    def _spent(self) -> bool:
        budget = self.plan.budget_s
        return budget is not None and self.now() - self.begin >= budget

    @functools.cached_property
    def _roofs(self) -> Roofs | None:
        """None where they cannot be measured: no AVX-512, or a runtime without the compiler."""
        if not any(s.engine.name == OURS for group in self.plan.groups for s in group.settings):
            return None
        try:
            from nmcompile.machine.roofs import measure_roofs

            found = measure_roofs()
        except (NmcompileError, ImportError):
            return None
        return Roofs(**asdict(found))

    def _result(self, complete: bool = True) -> Run:
        return make_run(
            self.plan,
            self.started,
            self.now() - self.begin,
            complete=complete and not self.interrupted and not self.late,
            machine=self.machine,
            pinned=self.pinned,
            roofs=self.__dict__.get("_roofs"),
            calibration=self.calibration,
            models=self.models,
            cases=self.cases,
        )


def make_run(
    plan: Plan,
    started: datetime.datetime,
    seconds: float,
    *,
    complete: bool,
    machine: Machine,
    models: Sequence[Model],
    cases: Sequence[Case],
    pinned: Sequence[int] = (),
    roofs: Roofs | None = None,
    devices: Mapping[str, Machine] | None = None,
    device_roofs: Mapping[str, Roofs] | None = None,
    calibration: str = "",
) -> Run:
    """The file of a run; arguments as its fields."""
    settings = Settings(
        rounds=plan.rounds, warmup=plan.warmup, pinned=list(pinned),
        budget_s=plan.budget_s, memory_bytes=plan.memory_bytes, calibration=calibration,
    )  # fmt: skip
    others = {case.engine: case.engine_version for case in cases if case.engine_version}
    return Run(
        label=plan.label,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=seconds,
        complete=complete,
        machine=machine,
        devices=dict(devices or {}),
        device_roofs=dict(device_roofs or {}),
        versions=package_versions(PACKAGES) | others,
        settings=settings,
        roofs=roofs,
        models=list(models),
        cases=list(cases),
    )


def calibration_note(calibration: str) -> str:
    """What has to be said of models that were quantised here."""
    note = f"int8 models were quantised by nmcompile on {calibration}"
    if calibration == RANDOM:
        note += ": their latency does not depend on the values, what a trained model loses does"
    return note


class _RoundClock:
    """Tells the estimate of the time left how long the rounds of a group take."""

    def __init__(self, left: TimeLeft, rounds: int, now: Callable[[], float]) -> None:
        self._left, self._open, self._now = left, rounds, now
        self._last = now()

    def see(self, stage: str) -> None:
        """Another report: of stage "timing" there is one per round."""
        begin, self._last = self._last, self._now()
        if stage == "timing" and self._open:
            self._open -= 1
            self._left.add("round", 1, self._last - begin)

    def end(self) -> None:
        """The group has ended, perhaps early."""
        self._left.drop("round", self._open)
