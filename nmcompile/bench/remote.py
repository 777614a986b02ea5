"""A benchmark run on other machines: compiled here, measured there, gathered in one result.

Only our engine runs remotely, one case per job; cases of one device take no turns with each other.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nmcompile.bench.cases import new_case
from nmcompile.bench.matrix import Group, Setting
from nmcompile.bench.noise import judge
from nmcompile.bench.preparation import Preparation
from nmcompile.bench.profile import layer_rows
from nmcompile.bench.ratios import median_interval
from nmcompile.bench.results import Case, Model, Roofs, Run
from nmcompile.bench.run import Failure, Outcome, Plan, calibration_note, make_run
from nmcompile.bench.sources import Source
from nmcompile.bench.variants import Compiled, Variant
from nmcompile.devices import Fleet, Job
from nmcompile.devices import Outcome as JobOutcome
from nmcompile.errors import DeviceError, NmcompileError
from nmcompile.linking import link
from nmcompile.machine.describe import Machine, describe_machine
from nmcompile.machine.load import Load
from nmcompile.machine.roofs import TARGETS as ROOF_TARGETS
from nmcompile.machine.roofs import RoofLoop, compile_roofs
from nmcompile.progress import Progress, silent
from nmcompile.runtime import LayerTime, read_artifact
from nmcompile.version import VERSION

# On the device:
ARTIFACT, INPUTS, OUTPUTS, ROOFS = "model.nmc", "inputs.npz", "outputs.npz", "roofs.so"


@dataclass(frozen=True, eq=False)
class _Work:
    """One case that is ready to be sent; `known` are the layers of its artifact."""

    group: Group
    setting: Setting
    ready: Preparation
    variant: Variant
    compiled: Compiled
    known: Sequence[Mapping[str, Any]]
    job: Job


@dataclass(frozen=True, eq=False)
class _Answered:
    """A case, and the times of its layers where it was measured."""

    work: _Work
    case: Case
    times: Sequence[LayerTime] = ()

    def rated(self, roofs: Roofs | None) -> Case:
        """The case with its layers held against the roofs of its device."""
        rows = layer_rows(self.times, self.work.known, roofs, self.work.group.threads)
        return msgspec.structs.replace(self.case, layers=rows)


def run_remote(
    plan: Plan,
    fleet: Fleet,
    *,
    progress: Progress = silent,
    on_case: Callable[[Run], object] = lambda run: None,
) -> Outcome:
    """Measure the cases of our engine on a fleet.

    Args:
        plan: what; cores are not chosen, and waited for, remotely.
        fleet: where.
        progress: told about every stage.
        on_case: given the run so far after every case, so that it can be saved.

    Returns:
        As `run_plan`; `notes` tells of devices that died or stalled.

    Raises:
        DeviceError: there is no such tracker, or no device of the key.
    """
    return _RemoteRun(plan, fleet, progress, on_case).run()


class _RemoteRun:
    def __init__(
        self, plan: Plan, fleet: Fleet, progress: Progress, on_case: Callable[[Run], object]
    ) -> None:
        self.plan, self.fleet, self.progress, self.on_case = plan, fleet, progress, on_case
        self.folder = Path()
        self.started, self.begin = datetime.datetime.now(datetime.UTC), time.monotonic()
        self.machine = describe_machine()
        self.models: list[Model] = []
        self.answered: list[_Answered] = []
        self.devices: dict[str, Machine] = {}
        self.roofs: dict[str, Roofs] = {}
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.calibration = ""
        self._roof_libraries: dict[str, tuple[Path, RoofLoop]] = {}

    def run(self) -> Outcome:
        interrupted, late = False, False
        with tempfile.TemporaryDirectory(prefix="nmc-bench-") as folder:
            self.folder = Path(folder)
            try:
                work = {item.job: item for item in self._prepare()}
                late = self._measure(work)
            except KeyboardInterrupt:
                interrupted = True
        run = self._result(complete=not interrupted and not late)
        if self.calibration:
            self.notes.append(calibration_note(self.calibration))
        return Outcome(run, tuple(self.failures), interrupted, tuple(self.notes))

    def _measure(self, work: Mapping[Job, _Work]) -> bool:
        """Run the jobs; tells whether the time was up before all were done."""
        if not work:
            return False
        budget = self.plan.budget_s
        with contextlib.closing(self.fleet.run(work)) as outcomes:
            self.progress("measuring", 0, len(work))
            for done, outcome in enumerate(outcomes, 1):
                self._add(work[outcome.job], outcome)
                self.progress("measuring", done, len(work))
                self.on_case(self._result(complete=False))
                spent = time.monotonic() - self.begin
                if budget is not None and spent > budget and done < len(work):
                    return True
        return False

    def _prepare(self) -> Iterator[_Work]:
        """Compile and export everything that is to be sent."""
        plan = self.plan
        for source in plan.sources:
            groups = [group for group in plan.groups if group.model == source.name]
            for batch in dict.fromkeys(group.batch for group in groups):
                place = Path(tempfile.mkdtemp(dir=self.folder))
                ready = Preparation(source, batch, place, None, 0)
                for group in (group for group in groups if group.batch == batch):
                    for setting in group.settings:
                        yield from self._ready(source, group, setting, ready, place)

    def _ready(
        self, source: Source, group: Group, setting: Setting, ready: Preparation, place: Path
    ) -> Iterator[_Work]:
        shown = f"{source.name}: {setting.pattern.text} {setting.target}".strip()

        def report(stage: str, done: int = 0, total: int = 0) -> None:
            self.progress(f"{shown}: {stage}", done, total)

        report("preparing")
        try:
            variant = ready.variant(setting.pattern)
            compiled = variant.compiled(setting.target, report)
            self.calibration = ready.calibration or self.calibration
            known = read_artifact(compiled.path).manifest.layers
            if all(model.name != source.name for model in self.models):
                self.models.append(source.describe(variant.macs // max(variant.batch, 1)))
        except NmcompileError as error:
            self.failures.append(Failure(shown, str(error), declined=False))
            return
        inputs = place / INPUTS
        if not inputs.exists():
            np.savez(inputs, **ready.inputs)  # type: ignore[arg-type]
        results = Path(tempfile.mkdtemp(dir=place)) / OUTPUTS
        files = {ARTIFACT: compiled.path, INPUTS: inputs}
        roofs = None
        if compiled.target in ROOF_TARGETS:
            library, loop = self._roof_library(compiled.target)
            files[ROOFS] = library
            roofs = {"library": ROOFS, "loop": asdict(loop)}
        request = {
            "task": "artifact",
            "artifact": ARTIFACT,
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "threads": group.threads,
            "rounds": self.plan.rounds,
            "warmup": self.plan.warmup,
            "roofs": roofs,
        }
        job = Job(f"{shown}, {group.threads} threads", request, files, {OUTPUTS: results})
        yield _Work(group, setting, ready, variant, compiled, known, job)

    def _roof_library(self, target: str) -> tuple[Path, RoofLoop]:
        """The loops that reach a device's roofs, compiled."""
        if target not in self._roof_libraries:
            module, loop = compile_roofs(target)
            path = self.folder / f"{target}-{ROOFS}"
            module.export_library(str(path), fcompile=link)
            self._roof_libraries[target] = path, loop
        return self._roof_libraries[target]

    def _add(self, work: _Work, outcome: JobOutcome) -> None:
        for failure in outcome.failures:
            where = failure.device or "no device"
            self.notes.append(f"{work.job.name}: an attempt on {where} failed: {failure.reason}")
        key, response = self.fleet.key, outcome.response
        device = f"{key} at {outcome.device}" if outcome.device else key
        # Cases on devices take no turns: each is a group of its own.
        case = new_case(work.group, work.setting, work.variant, work.compiled)
        group = f"{work.job.name}, batch {case.batch}, {device}"
        case = msgspec.structs.replace(case, group=group, engine_version=VERSION, device=device)
        times: list[LayerTime] = []
        try:
            if response is None:
                raise DeviceError(outcome.error or "the device did not say why")
            self.devices[device] = msgspec.convert(response["machine"], Machine)
            if response["roofs"] is not None:
                self._add_roofs(device, msgspec.convert(response["roofs"], Roofs))
            case = self._measured(work, case, response)
            times = [LayerTime(**layer) for layer in response["layers"]]
        except NmcompileError as error:
            self.failures.append(Failure(work.job.name, str(error), declined=False))
            case = msgspec.structs.replace(case, error=str(error))
        self.answered.append(_Answered(work, case, times))

    def _add_roofs(self, device: str, found: Roofs) -> None:
        """Keep the highest: others on a machine only slow it down."""
        before = self.roofs.get(device, found)
        highest = {kind: _highest(before, found, kind) for kind in Roofs.__struct_fields__}
        self.roofs[device] = msgspec.convert(highest, Roofs)

    def _measured(self, work: _Work, case: Case, response: Mapping[str, Any]) -> Case:
        """The case with what the device answered.

        Raises:
            NmcompileError: its outputs are of another model.
        """
        with np.load(work.job.results[OUTPUTS], allow_pickle=False) as stored:
            outputs = [stored[name] for name in stored.files]
        samples = list(response["samples_ms"])
        noise, reason = judge(median_interval(samples), samples, Load(**response["load"]))
        facts = msgspec.structs.replace(work.compiled.facts, load_ms=response["load_ms"])
        return msgspec.structs.replace(
            case,
            samples_ms=samples,
            noise=noise,
            noise_reason=reason,
            accuracy=work.ready.agreement(work.setting, outputs),
            artifact=facts,
        )

    def _result(self, complete: bool) -> Run:
        return make_run(
            self.plan,
            self.started,
            time.monotonic() - self.begin,
            complete=complete,
            machine=self.machine,
            models=self.models,
            cases=[done.rated(self.roofs.get(done.case.device)) for done in self.answered],
            devices=self.devices,
            device_roofs=self.roofs,
            calibration=self.calibration,
        )


def _highest(first: Roofs, second: Roofs, kind: str) -> float | None:
    """The higher of one roof; None where neither has it, as only libraries for some CPUs do."""
    both = (getattr(first, kind), getattr(second, kind))
    return max((roof for roof in both if roof is not None), default=None)
