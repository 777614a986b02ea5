"""What the driver is asked for, made ready: which database, which part of it, measured where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmcompile.errors import InputError
from nmcompile.runtime import cpu
from nmcompile.runtime.files import check_writable
from nmcompile.targets import Target
from nmcompile.tuning.database import TuningDatabase
from nmcompile.tuning.gpu import GpuMeasurer, gpu_database
from nmcompile.tuning.tuner import Layer, LocalMeasurer, Measurer
from nmcompile.tuning.tuner import tune as tune_layers

if TYPE_CHECKING:
    from nmcompile.devices import Fleet
    from nmcompile.progress import Progress


@dataclass(frozen=True, eq=False)
class Tuning:
    """A database that kernels are chosen by; `measurer` first adds what it lacks, if there is one.

    place: where that measures, for the user.
    cores: of the machine that is compiled for; None for this one.
    """

    database: TuningDatabase
    measurer: Measurer | None = None
    place: str = ""
    cores: int | None = None

    @property
    def measures(self) -> bool:
        """Whether there is anything to do for `fill`."""
        return self.measurer is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know of the measuring."""
        return () if self.measurer is None else tuple(self.measurer.notes)

    def fill(self, layers: Sequence[Layer], target: str, stage: Progress) -> None:
        """Add what the database lacks for some layers, as `tuner.tune`."""
        if self.measurer is None:
            return
        name = f"measuring kernels on {self.place}"

        def progress(done: int, total: int) -> None:
            stage(name, done, total)

        tune_layers(layers, target, self.database, self.measurer, progress)


def open_tuning(
    target: Target,
    path: str | os.PathLike[str] | None,
    *,
    cpu_model: str | None,
    tune: bool,
    fleet: Fleet | None,
) -> Tuning | None:
    """The tuning of one compilation; None for the analytical model alone.

    Args:
        target: what is compiled for.
        path: of the database.
        cpu_model: a part of the name of the model to choose for, without `tune`.
        tune: whether to measure, on `fleet` or, where that is None, on this machine.
        fleet: devices of the target.

    Raises:
        InputError: the file is no database, is missing without `tune`, has nothing for a GPU, or
            options contradict.
        ArtifactError: the database cannot be written.
        DeviceError: this machine or a device cannot run the target's code, or there is no device.
    """
    file = None if path is None else Path(path)
    if fleet is not None and not tune:
        raise InputError(
            f"the devices {fleet.key} of the tracker at {fleet.tracker} are there to tune on: "
            "expected --tune (in Python tune=True) with them, found none"
        )
    if target.arch and (fleet is not None or cpu_model is not None):
        raise InputError(
            f"target {target.name} is a GPU: it is tuned on the GPU at hand, with --tune alone; "
            "--tracker, --key and --tuning-cpu are for CPUs"
        )
    if cpu_model is not None and (tune or file is None):
        raise InputError(
            f"the CPU model {cpu_model!r} says by which measurements of a tuning database to "
            "choose: expected --tuning-db with it, and no --tune, which is for the CPU that it "
            "measures on"
        )
    if not tune:
        if file is None:
            return None
        if not file.exists():
            raise InputError(
                f"the tuning database {file} does not exist; make it with --tune, or name another"
            )
        if target.arch:
            return Tuning(gpu_database(file, target, tune))
        known = TuningDatabase(file)
        return Tuning(known if cpu_model is None else TuningDatabase.open_for(file, cpu_model))
    if file is not None:
        check_writable(file)
        TuningDatabase(file)  # not one, it is refused before devices are asked
    if target.arch:
        return Tuning(gpu_database(file, target, tune), GpuMeasurer(), "this machine's GPU")
    if fleet is None:
        cpu.require(target.cpu_features, f"tuning for the target {target.name}")
        return Tuning(TuningDatabase(file), LocalMeasurer(), "this machine")
    from nmcompile.tuning.remote import RemoteMeasurer

    measurer = RemoteMeasurer(fleet, target)
    database = TuningDatabase(file, measurer.cpu)
    return Tuning(database, measurer, f"devices {fleet.key}", measurer.cores)
