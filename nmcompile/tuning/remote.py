"""Measuring candidates on other machines: compiled here, timed there, a layer per job.

Devices of one key measure for each other, so they have to have the same CPU, model and number of
cores: what is fastest on one says little about another, and a model is tuned for one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nmcompile.devices import Fleet, Job, Outcome, list_devices
from nmcompile.errors import DeviceError
from nmcompile.machine.trial import Measured
from nmcompile.targets import Target
from nmcompile.tuning.library import compile_kernels
from nmcompile.tuning.tuner import Contest

LIBRARY, ARRAYS = "kernels.so", "arrays.npz"  # on the device


class RemoteMeasurer:
    """Measures on the devices of a key.

    cpu, cores: the model of their CPU, and how many cores it has.
    notes: attempts that failed and were repeated, for the user.
    """

    def __init__(self, fleet: Fleet, target: Target) -> None:
        """Ask the devices which CPUs they have.

        Raises:
            DeviceError: there are none, they lack features of the target, or differ.
        """
        self._fleet, self._target = fleet, target
        self._needs = {
            "features": list(target.cpu_features),
            "what": f"tuning for the target {target.name}",
        }
        self._cpus: dict[str, tuple[str, int]] = {}  # of each device that has answered
        self.notes: list[str] = []
        known = [len(d.servers) for d in list_devices(fleet.tracker) if d.key == fleet.key]
        # As many at once as there are devices: each that is free gets one.
        jobs = [Job("asking for the CPU", {"task": "check", **self._needs})] * max(known, default=1)
        for outcome in fleet.run(jobs):
            self._response(outcome)
        self.cpu, self.cores = next(iter(self._cpus.values()))

    def measure(
        self, contests: Iterable[Contest], target: str
    ) -> Generator[tuple[Contest, Measured]]:
        """Yield each with what was measured, as the devices answer.

        Raises:
            DeviceError: no device can measure a layer; the message says why.
        """
        waiting: dict[Job, Contest] = {}
        with tempfile.TemporaryDirectory(prefix="nmc-tune-") as folder:
            outcomes = self._fleet.run(self._jobs(contests, Path(folder), waiting))
            try:
                for outcome in outcomes:
                    contest = waiting.pop(outcome.job)
                    response = self._response(outcome)
                    shutil.rmtree(outcome.job.files[LIBRARY].parent)
                    yield contest, Measured(response["ms"], response["differences"])
            finally:
                outcomes.close()

    def _jobs(
        self, contests: Iterable[Contest], folder: Path, waiting: dict[Job, Contest]
    ) -> Iterator[Job]:
        """Compile one contest after the other, as the devices ask for them."""
        for contest in contests:
            place = Path(tempfile.mkdtemp(dir=folder))
            library = compile_kernels(contest.lower(), self._target)
            files = {LIBRARY: place / LIBRARY, ARRAYS: place / ARRAYS}
            library.write(files[LIBRARY], files[ARRAYS])
            request = {
                "task": "kernels",
                "library": LIBRARY,
                "arrays": ARRAYS,
                "trial": asdict(library.trial_of(contest.layer.problem)),
                **self._needs,
            }
            job = Job(f"measuring {contest.layer.name}", request, files)
            waiting[job] = contest
            yield job

    def _response(self, outcome: Outcome) -> Mapping[str, Any]:
        """What a device answered.

        Raises:
            DeviceError: it did not, or it has another CPU than one before.
        """
        key, name = self._fleet.key, outcome.job.name
        for failure in outcome.failures:
            where = failure.device or "no device"
            self.notes.append(f"{name}: an attempt on {where} failed: {failure.reason}")
        if outcome.response is None:
            where = f"{key} at {outcome.device}" if outcome.device else f"devices {key}"
            raise DeviceError(f"{name} on {where}: {outcome.error}")
        self._cpus[outcome.device] = outcome.response["cpu"], outcome.response["cores"]
        places: dict[tuple[str, int], list[str]] = {}
        for device, found in sorted(self._cpus.items()):
            places.setdefault(found, []).append(device)
        if len(places) > 1:
            kinds = "; ".join(
                f"{cpu} with {cores} cores at {', '.join(at)}"
                for (cpu, cores), at in places.items()
            )
            raise DeviceError(
                f"the devices with the key {key!r} have different CPUs, and what is fastest on one "
                f"need not be on another: expected one model and number of cores, found {kinds}; "
                "serve each kind under a key of its own"
            )
        return outcome.response
