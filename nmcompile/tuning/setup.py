"""What the driver is asked for, made ready: which database, which part of it, measured where."""

from __future__ import annotations

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
from nmcompile.tuning.request import Tuning
from nmcompile.tuning.tuner import Layer, LocalMeasurer, Measurer
from nmcompile.tuning.tuner import tune as tune_layers
from nmcompile.wording import way

if TYPE_CHECKING:
    from nmcompile.progress import Progress


@dataclass(frozen=True, eq=False)
class OpenTuning:
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


def open_tuning(target: Target, tuning: Tuning | None) -> OpenTuning | None:
    """The tuning of one compilation; None for the analytical model alone.

    Raises:
        InputError: the file is no database, is missing without `measure`, has nothing for a GPU, or
            options contradict.
        ArtifactError: the database cannot be written.
        DeviceError: this machine or a device cannot run the target's code, or there is no device.
    """
    if tuning is None:
        return None
    file = None if tuning.database is None else Path(tuning.database)
    if tuning.on is not None and not tuning.measure:
        raise InputError(
            f"the devices {tuning.on.key} of the tracker at {tuning.on.tracker} are there to tune "
            f"on: expected {_measuring()} with them, found none"
        )
    if target.arch and (tuning.on is not None or tuning.cpu is not None):
        raise InputError(
            f"target {target.name} is a GPU: it is tuned on the GPU at hand, with {_measuring()} "
            f"alone; {way('--tracker, --key and --tuning-cpu', '`on` and `cpu`')} are for CPUs"
        )
    if tuning.cpu is not None and (tuning.measure or file is None):
        raise InputError(
            f"the CPU model {tuning.cpu!r} says by which measurements of a tuning database to "
            f"choose: expected {way('--tuning-db', '`database`')} with it, and no {_measuring()}, "
            "which is for the CPU that it measures on"
        )
    if not tuning.measure:
        if file is None:
            return None
        if not file.exists():
            raise InputError(
                f"the tuning database {file} does not exist; make it with {_measuring()}, or name "
                "another"
            )
        if target.arch:
            return OpenTuning(gpu_database(file, target, tuning.measure))
        if tuning.cpu is None:
            return OpenTuning(TuningDatabase(file))
        return OpenTuning(TuningDatabase.open_for(file, tuning.cpu))
    if file is not None:
        check_writable(file)
        TuningDatabase(file)  # not one, it is refused before devices are asked
    if target.arch:
        database = gpu_database(file, target, tuning.measure)
        return OpenTuning(database, GpuMeasurer(), "this machine's GPU")
    if tuning.on is None:
        cpu.require(target.cpu_features, f"tuning for the target {target.name}")
        return OpenTuning(TuningDatabase(file), LocalMeasurer(), "this machine")
    from nmcompile.tuning.remote import RemoteMeasurer

    measurer = RemoteMeasurer(tuning.on, target)
    database = TuningDatabase(file, measurer.cpu)
    return OpenTuning(database, measurer, f"devices {tuning.on.key}", measurer.cores)


def _measuring() -> str:
    return way("--tune", "Tuning(measure=True)")
