"""Tuning for GPUs: which part of a database is for one, and measuring on the one at hand."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from nmcompile.errors import DeviceError, InputError
from nmcompile.machine.trial import Measured
from nmcompile.runtime import gpu
from nmcompile.targets import Target, find_target
from nmcompile.tuning.database import TuningDatabase
from nmcompile.tuning.measure_gpu import measure_on_gpu
from nmcompile.tuning.tuner import Contest
from nmcompile.wording import way


class GpuMeasurer:
    """Measures on the GPU at hand, one contest after the other."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def measure(
        self, contests: Iterable[Contest], target: str
    ) -> Generator[tuple[Contest, Measured]]:
        """Yield each with what was measured."""
        arch = find_target(target).arch
        for contest in contests:
            times, differences = measure_on_gpu(contest.lower(), arch)
            yield contest, Measured([times], differences)


def gpu_database(path: Path | None, target: Target, tune: bool) -> TuningDatabase:
    """The measurements of one model of GPU.

    Args:
        path: the file; None keeps nothing.
        target: whose architecture the GPU has.
        tune: whether measurements are taken, on the GPU at hand. Without, and without a GPU, the
            database's only one of the architecture counts.

    Raises:
        DeviceError: `tune` without a GPU of the target's.
        InputError: the file is no database, or has none or several such GPUs.
    """
    if tune:
        gpu.require(target.name, 0, f"tuning for the target {target.name}")
        return TuningDatabase(path, _spell(gpu.host()))
    wanted = gpu.KINDS[target.name]
    endings = tuple(f" {major}.{minor}" for major, minor in wanted.versions)
    known = [name for name in TuningDatabase(path).machines if name.endswith(endings)]
    try:
        here = _spell(gpu.host())
    except DeviceError:
        here = ""
    if here in known:
        return TuningDatabase(path, here)
    if len(known) != 1:
        raise InputError(
            f"the tuning database {path} has {len(known) or 'no'} GPUs of compute capability "
            f"{wanted}{': ' if known else ''}{', '.join(known)}; expected one: tune with "
            f"{way('--tune', 'Tuning(measure=True)')} on a machine with the GPU that the "
            "model is for, into a file of its own"
        )
    return TuningDatabase(path, known[0])


def _spell(found: gpu.Gpu) -> str:
    return f"{found.name} {found.major}.{found.minor}"
