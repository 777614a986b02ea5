"""The tuning database: a JSON file of the fastest kernel and tiles per problem and CPU model.

GPUs stand among the CPUs, by their name and compute capability.

    {"version": 1, "cpus": {CPU: {PROBLEM: {"kernel": ..., "config": {...}, "ms": ...,
                                            "default_ms": ...}}}}

PROBLEM spells geometry, epilogue, pattern and density; the weights themselves do not matter. An
entry is only a hint: tiles that the kernel would not propose today are ignored, so that an old or
edited file cannot make a model wrong.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nmcompile.errors import ArtifactError, InputError
from nmcompile.kernels.catalog import Choice, Kernel, OpKind, choose, extends_another, rows_for
from nmcompile.kernels.problem import Candidate, Problem
from nmcompile.runtime.cpu import model
from nmcompile.runtime.files import replace_file

VERSION = 1


@dataclass(frozen=True)
class Tuned:
    """One entry.

    kernel: name of the fastest row of the catalogue.
    config: its tiles as a dictionary.
    ms, default_ms: of it and of the analytical model's choice: the geometric mean of the median
        milliseconds on one thread and on all cores; on a GPU, the median.
    """

    kernel: str
    config: dict[str, Any]
    ms: float
    default_ms: float

    def is_of(self, choice: Choice) -> bool:
        """Whether this is the kernel that was measured fastest, with its tile sizes."""
        return (choice.kernel.name, plain_config(choice.config)) == (self.kernel, self.config)


class TuningDatabase:
    """What was measured, by CPU model or GPU and problem; only one machine's part is consulted.

    machine: which, a CPU model as `runtime.cpu.model` spells it, or a GPU as `tuning.gpu` does.
    """

    def __init__(self, path: Path | None = None, machine: str | None = None) -> None:
        """Open a database; a missing file is an empty one, without `path` nothing is kept.

        Args:
            path: the file.
            machine: the CPU model or GPU to choose for; None for this machine's CPU.

        Raises:
            InputError: the file is not a tuning database.
        """
        self.path = path
        self._cpus: dict[str, dict[str, Tuned]] = {}
        if path is not None and path.exists():
            self._cpus = _read(path)
        self.machine = model() if machine is None else machine
        self._entries = self._cpus.setdefault(self.machine, {})

    @staticmethod
    def open_for(path: Path, cpu: str) -> TuningDatabase:
        """Open a database for the one of its CPU models whose name has `cpu` in it.

        Raises:
            InputError: there is none, or there are several; or as the constructor.
        """
        known = sorted(_read(path))
        found = [name for name in known if cpu.lower() in name.lower()]
        if len(found) != 1 and cpu not in known:
            raise InputError(
                f"the tuning database {path} has {len(found) or 'no'} CPU models with {cpu!r} in "
                f"their name, expected one: it has {', '.join(map(repr, known)) or 'none at all'}"
            )
        return TuningDatabase(path, cpu if cpu in known else found[0])

    @property
    def machines(self) -> list[str]:
        """CPU models and GPUs that something was measured on."""
        return sorted(name for name, entries in self._cpus.items() if entries)

    def find(self, problem: Problem, target: str = "") -> Tuned | None:
        """The entry of a problem for a target, if it was measured on the machine."""
        return self._entries.get(problem_key(problem, target))

    def add(self, problem: Problem, tuned: Tuned, target: str = "") -> None:
        """Remember an entry, in the file too, beside what others have written there meanwhile.

        Raises:
            ArtifactError: the file cannot be written.
            InputError: it is no tuning database any more.
        """
        self._entries[problem_key(problem, target)] = tuned
        if self.path is None:
            return
        with _locked(self.path):
            if self.path.exists():
                for cpu, entries in _read(self.path).items():
                    known = self._cpus.setdefault(cpu, {})
                    known |= entries
            self._entries[problem_key(problem, target)] = tuned
            _write(self.path, self._cpus)

    def choose(self, op: OpKind, target: str, problem: Problem) -> Choice:
        """The measured kernel and tiles where there are any, else the analytical model's.

        Raises:
            TargetError: as `catalog.choose`.
        """
        choice = choose(op, target, problem)
        found = self.find(problem, target) if problem.weight is not None else None
        if found is None:
            return choice
        refusals = {}
        for kernel in rows_for(op, target, problem.dtype):
            reason = kernel.refuse(problem)
            if reason is None and kernel.name != found.kernel:
                reason = f"measured slower than {found.kernel}"
            if reason is not None:
                refusals[kernel.name] = reason
                continue
            for candidate in kernel.configs(problem):
                if plain_config(candidate.config) == found.config:
                    return Choice(kernel, refusals, candidate.config)
        return choice

    def cycles(
        self, op: OpKind, target: str, problem: Problem, kernel: Kernel, candidate: Candidate
    ) -> float:
        """Those of tile sizes, as they compare within a problem.

        Of the measured best there are as many fewer than of the model's choice as it took less
        time; of others as many as are counted.
        """
        found = self.find(problem, target)
        if found is None or not found.is_of(Choice(kernel, config=candidate.config)):
            return candidate.cycles
        counted = choose(op, target, problem).kernel.configs(problem)
        return counted[0].cycles * found.ms / found.default_ms if counted else candidate.cycles


def problem_key(problem: Problem, target: str = "") -> str:
    """A line that is equal for problems whose measurements can stand for each other.

    Targets count where one has kernels that another, which the problem may also run on, lacks.
    """
    pattern, density = "dense", 1.0
    if problem.detection is not None:
        pattern, density = str(problem.detection.pattern), problem.detection.density
    epilogue: Any = problem.epilogue
    if problem.integers is not None:
        # Zero points and limits are numbers in the code: they do not change its time.
        epilogue = replace(problem.integers.epilogue, zero=0, low=0, high=255)
    key = f"{problem.spec} {epilogue} {pattern} {density:.2f}"
    if problem.dtype == "bfloat16":  # the other precisions have epilogues or machines of their own
        key = f"{key} {problem.dtype}"
    return f"{key} on {target}" if extends_another(target, problem.dtype) else key


def plain_config(config: Any) -> Any:
    """A config as it comes back from JSON; None of None."""
    if config is None:
        return None
    return json.loads(json.dumps(asdict(config)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Be the only one that reads and writes a file; its folder is what is locked.

    (The file is replaced whenever it is written, and a file beside it would stay behind.)
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror}; choose another file"
        ) from error
    try:
        with suppress(OSError):  # where a file system has no locks, the last writer wins
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read(path: Path) -> dict[str, dict[str, Tuned]]:
    try:
        document = json.loads(path.read_text(), parse_constant=_no_number)
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}")
        return {
            str(cpu): {
                str(key): Tuned(
                    str(entry["kernel"]),
                    dict(entry["config"]),
                    _milliseconds(entry["ms"]),
                    _milliseconds(entry["default_ms"]),
                )
                for key, entry in entries.items()
            }
            for cpu, entries in document["cpus"].items()
        }
    except OSError as error:
        raise InputError(f"cannot read the tuning database {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a tuning database of version {VERSION}, found something else "
            f"({type(error).__name__}: {error}); name another file, or delete this one"
        ) from error


def _milliseconds(value: Any) -> float:
    """A time as it was measured.

    Raises:
        ValueError: it is none.
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"expected a time above 0 ms, found {value!r:.80}")
    return float(value)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _write(path: Path, cpus: dict[str, dict[str, Tuned]]) -> None:
    document = {
        "version": VERSION,
        "cpus": {
            cpu: {key: asdict(entry) for key, entry in sorted(entries.items())}
            for cpu, entries in cpus.items()
        },
    }
    replace_file(path, [json.dumps(document, indent=1).encode() + b"\n"])
