"""One group of cases: loads the engines, lets them take turns, and makes cases of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from nmcompile.bench.accuracy import try_run
from nmcompile.bench.baselines import anchor_of, certainty
from nmcompile.bench.cases import new_case
from nmcompile.bench.clock import interleave
from nmcompile.bench.cores import Cores
from nmcompile.bench.engines import Array, Engine, name_inputs, open_engine
from nmcompile.bench.engines.engine import summary
from nmcompile.bench.engines.ours import Nmcompile
from nmcompile.bench.matrix import Group, Setting
from nmcompile.bench.noise import WIDE, judge
from nmcompile.bench.pinning import chosen_cores, on_cores
from nmcompile.bench.preparation import Preparation
from nmcompile.bench.profile import layer_rows
from nmcompile.bench.results import Accuracy, Case, LayerRow, Roofs
from nmcompile.bench.variants import Variant
from nmcompile.errors import DeclinedError, NmcompileError
from nmcompile.machine.load import Load, LoadMeter

PROFILED = 10  # runs
TOO_SLOW = "its share of the time is over before the first round: raise --budget, or leave it out"
SELF = Path("/proc/self/statm")


class Stage(Protocol):
    """Told what is going on, and how much of it is done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report."""


@dataclass(frozen=True)
class Limits:
    """How the group is measured.

    rounds, most, warmup: timed rounds, as many as that where they are noisy, and untimed ones.
    pin: keep to as many cores as there are threads.
    deadline: on the clock `now`; None for none.
    memory_bytes: of this process; cases that would go over it are left out.
    roofs: of the machine, for profiles.
    """

    rounds: int
    most: int
    warmup: int
    pin: bool
    deadline: float | None
    memory_bytes: int | None
    roofs: Roofs | None
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class CaseError:
    """Why a case has no samples; declined: that is no failure."""

    text: str
    declined: bool

    def __str__(self) -> str:
        return self.text


@dataclass
class Entrant:
    """One case on its way."""

    setting: Setting
    variant: Variant | None = None
    engine: Engine | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    samples: list[float] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    error: CaseError | None = None
    cut: bool = False  # whether it is so slow that it has fewer rounds than the others

    @property
    def title(self) -> str:
        """For messages."""
        setting = self.setting
        return " ".join(w for w in (setting.engine.name, setting.pattern.text, setting.target) if w)

    def fail(self, error: Exception) -> None:
        """Take no part any more."""
        text = str(error) if isinstance(error, NmcompileError) else summary(error)
        self.error = CaseError(text, isinstance(error, DeclinedError))
        self.samples = []


class GroupRun:
    """Measures one group.

    Attributes:
        pinned: the cores that it kept to.
        stopped: why there are fewer rounds than asked for.
    """

    def __init__(self, group: Group, ready: Preparation, limits: Limits, cores: Cores) -> None:
        self.group, self._ready, self._limits, self._cores = group, ready, limits, cores
        self._entrants = [Entrant(setting) for setting in group.settings]
        self._load = Load()
        self.pinned: list[int] = []
        self.stopped: Literal["", "time", "interrupt"] = ""

    def measure(self, stage: Stage) -> None:
        """Load, time and profile; errors stay with their cases.

        Raises:
            KeyboardInterrupt: before anything was timed. Later ones end the rounds, see `stopped`.
        """
        try:
            for index, entrant in enumerate(self._entrants):
                stage(f"loading {entrant.title}", index, len(self._entrants))
                try:
                    self._open(entrant)
                except NmcompileError as error:
                    entrant.fail(error)
            runnable = [entrant for entrant in self._entrants if entrant.error is None]
            if runnable:
                with self._pinned():
                    self._time(runnable, stage)
                    if not self.stopped:
                        self._profile(runnable, stage)
        finally:
            for entrant in self._entrants:
                if entrant.engine is not None:
                    entrant.engine.close()

    @property
    def late(self) -> bool:
        """Whether the time was up before all cases had all rounds."""
        return self.stopped == "time" or any(entrant.cut for entrant in self._entrants)

    def errors(self) -> Iterator[tuple[str, CaseError]]:
        """What failed, and why."""
        for entrant in self._entrants:
            if entrant.error is not None:
                yield f"{self.group.model}, {entrant.title}", entrant.error

    def cases(self) -> list[Case]:
        """One for every entrant that was measured, or that failed."""
        entrants = [e for e in self._entrants if e.samples or e.error is not None]
        made = [self._case(entrant) for entrant in entrants]
        anchor, judged = anchor_of(made), []
        for entrant, case in zip(entrants, made, strict=True):
            verdict, reason = judge(certainty(case, anchor), case.samples_ms, self._load)
            if entrant.cut and verdict != "busy" and case.samples_ms:
                reason = (
                    f"too slow for more than {len(case.samples_ms)} rounds in its share of the "
                    "time: raise --budget"
                )
            judged.append(msgspec.structs.replace(case, noise=verdict, noise_reason=reason))
        return judged

    def _open(self, entrant: Entrant) -> None:
        setting, row = entrant.setting, entrant.setting.engine
        entrant.variant = variant = self._ready.variant(setting.pattern)
        model = variant.form_of(row, setting.target)
        self._check_memory(model)
        entrant.engine = engine = open_engine(row.name, model, variant.shapes, self.group.threads)
        self._check_memory()
        entrant.inputs = name_inputs(engine, self._ready.inputs)
        try_run(row.name, engine, entrant.inputs)
        entrant.accuracy = self._ready.accuracy(setting, engine)

    def _check_memory(self, model: Any = None) -> None:
        """Refuse what would take, or has taken, the process over its budget.

        Raises:
            DeclinedError: it does.
        """
        budget = self._limits.memory_bytes
        if budget is None:
            return
        used, more = resident_bytes(), 0
        if isinstance(model, Path):
            more = model.stat().st_size  # engines hold the weights at least once
        if used + more > budget:
            verb = "would use" if more else "uses"
            raise DeclinedError(
                f"the process {verb} {(used + more) / 1e6:.0f} MB with this case: expected at most "
                f"{budget / 1e6:.0f} MB; raise --memory, or measure fewer cases at once"
            )

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[None]:
        if not self._limits.pin:
            yield
            return
        with on_cores(self.group.threads, threads=True) as cores:
            self.pinned = cores
            yield

    def _time(self, runnable: list[Entrant], stage: Stage) -> None:
        limits, several = self._limits, self.group.threads > 1
        before = self._cores.rounds, self._cores.apart
        meter = LoadMeter(self.pinned or chosen_cores(os.cpu_count() or 1))
        turns = {index: _turn(entrant) for index, entrant in enumerate(runnable)}
        warmup, done = limits.warmup, 0
        while turns:
            total = done + limits.rounds
            counter = iter(range(1, warmup + limits.rounds + 1))

            def on_round(done: int = done, total: int = total, counter: Any = counter) -> None:
                stage("timing", done + next(counter), total + limits.warmup)

            timing = interleave(
                turns,
                limits.rounds,
                warmup=warmup,
                deadline=limits.deadline,
                before_round=self._cores.wait if several else lambda: None,
                on_round=on_round,
                now=limits.now,
            )
            for index, error in timing.failed.items():
                runnable[index].fail(error)
                del turns[index]
            for index in turns:
                runnable[index].samples += timing.samples[index]
            for index in timing.spent:
                runnable[index].cut = True
                del turns[index]
                if not runnable[index].samples:
                    runnable[index].fail(DeclinedError(TOO_SLOW))
            self.stopped = timing.stopped
            done, warmup = total, 0
            if self.stopped or done + limits.rounds > limits.most or not self._is_noisy():
                break
        rounds, apart = self._cores.rounds - before[0], self._cores.apart - before[1]
        self._load = meter.read(apart / rounds if rounds else 0.0)

    def _is_noisy(self) -> bool:
        """Whether more rounds would narrow an interval."""
        entrants = [entrant for entrant in self._entrants if entrant.samples]
        made = [self._case(entrant) for entrant in entrants]
        anchor = anchor_of(made)
        pairs = zip(entrants, made, strict=True)
        found = [certainty(case, anchor) for entrant, case in pairs if not entrant.cut]
        return any(interval is not None and interval.width > WIDE for interval in found)

    def _profile(self, runnable: list[Entrant], stage: Stage) -> None:
        ours = [e for e in runnable if e.samples and isinstance(e.engine, Nmcompile)]
        for index, entrant in enumerate(ours):
            stage("profiling", index, len(ours))
            assert isinstance(entrant.engine, Nmcompile)
            session = entrant.engine.session
            try:
                times = session.profile(entrant.inputs, PROFILED)
            except KeyboardInterrupt:
                self.stopped = "interrupt"
                return
            except NmcompileError:
                continue  # its library does not report its calls: the times stand all the same
            entrant.layers = layer_rows(
                times, session.manifest.layers, self._limits.roofs, session.threads
            )

    def _case(self, entrant: Entrant) -> Case:
        setting, variant, engine = entrant.setting, entrant.variant, entrant.engine
        compiled = None
        if setting.engine.form == "artifact" and variant is not None and not entrant.error:
            compiled = variant.compiled(setting.target)
        return msgspec.structs.replace(
            new_case(self.group, setting, variant, compiled),
            engine_version=engine.version if engine is not None else "",
            samples_ms=list(entrant.samples),
            accuracy=entrant.accuracy,
            layers=list(entrant.layers),
            error=entrant.error.text if entrant.error is not None else None,
        )


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say."""
    try:
        return int(SELF.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _turn(entrant: Entrant) -> Callable[[], float]:
    engine, inputs = entrant.engine, entrant.inputs
    assert engine is not None
    return lambda: engine.run(inputs)[1]
