"""Times of layers, from a profile in a file of results of `nmc bench`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmcompile.errors import InputError
from nmcompile.layer_facts import plain_name
from nmcompile.runtime import Manifest

if TYPE_CHECKING:
    from nmcompile.bench.results import Case, LayerRow, Run

Key = tuple[str, str]
"""Layer and symbol of a call."""


@dataclass(frozen=True, eq=False)
class Times:
    """One profile.

    said: what was measured, and where.
    rows: by layer and symbol; calls of one function for one layer count together.
    others: how many more profiles of the same model the file has.
    """

    said: str
    rows: Mapping[Key, LayerRow]
    others: int

    @property
    def total(self) -> float:
        """Milliseconds of all calls."""
        return sum(row.ms for row in self.rows.values())


def read_times(path: Path, manifest: Manifest, digest: str) -> Times:
    """The profile of a model in a file of results; of several, the first.

    Args:
        path: the file.
        manifest: of the model, whose calls the profile is to have.
        digest: of the artifact; "" for a model that was only lowered here.

    Raises:
        InputError: the file is no such thing, or has no profile of this model.
    """
    try:
        from nmcompile.bench.results import read_run
    except ImportError as error:
        raise InputError(
            f"reading {path} needs {error.name}, which is not installed: pip install "
            "'nmcompile[html]'"
        ) from error
    run = read_run(path)
    profiled = [case for case in run.cases if case.layers]
    fitting = [case for case in profiled if _fits(case, manifest, digest)]
    if not fitting:
        raise InputError(_refusal(path, profiled, manifest, digest))
    case = fitting[0]
    rows = {
        (plain_name(row.layer) if row.layer == row.symbol else row.layer, row.symbol): row
        for row in case.layers
    }
    return Times(_say(run, case), rows, len(fitting) - 1)


def _fits(case: Case, manifest: Manifest, digest: str) -> bool:
    if digest:
        return case.artifact is not None and case.artifact.digest == digest
    calls = {(call.layer, call.symbol) for call in manifest.calls}
    return {(row.layer, row.symbol) for row in case.layers} == calls


def _refusal(path: Path, profiled: list[Case], manifest: Manifest, digest: str) -> str:
    wanted = (
        f"the artifact of digest {digest[:12]}" if digest else f"{manifest.model.name} as it is"
    )
    wanted += "" if digest else f" lowered for {manifest.target.kind}"
    if not profiled:
        return (
            f"{path} has no profile: expected one of {wanted}; measure it with nmc bench, which "
            "profiles what this machine can run"
        )
    found = dict.fromkeys(
        f"{case.model} {case.pattern}".strip()
        + (f" ({case.artifact.digest[:12]})" if case.artifact is not None else "")
        for case in profiled
    )
    names = [*list(found)[:5], *(["..."] if len(found) > 5 else [])]
    return (
        f"{path} has no profile of {wanted}: found those of {', '.join(names)}; measure this very "
        "model with nmc bench, or name another file"
    )


def _say(run: Run, case: Case) -> str:
    machine = run.devices.get(case.device, run.machine)
    threads = f"{case.threads} thread{'s' * (case.threads != 1)}"
    return f"{threads}, batch {case.batch}, on {machine.cpu}, {run.started[:10]}"
