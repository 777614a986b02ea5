"""Choosing kernels by measuring the analytical model's favourites."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nmcompile.errors import TargetError
from nmcompile.kernels.catalog import Kernel, OpKind, choose, rows_for
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.machine.trial import Measured, thread_counts
from nmcompile.targets import find_target
from nmcompile.tuning.database import Tuned, TuningDatabase, plain_config, problem_key
from nmcompile.tuning.library import measure

CANDIDATES = 8  # of the kernel that the model chose
OTHERS = 3  # of every other that can run the problem
HOPELESS = 2.0  # times the cycles of the model's choice: not measured
LEAST_GAIN = 0.02  # a smaller one may be noise: keep the model's choice
AGREEMENT = 1e-4  # of the largest output
HALF_AGREEMENT = 2.0**-9  # where outputs are rounded to float16: two units in its last place
BRAIN_AGREEMENT = 2.0**-6  # likewise to bfloat16
STEP = 1.01 / 128  # one step of rounding, where the largest of 8 bits is above the middle


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer to tune; `name` is for messages."""

    name: str
    op: OpKind
    problem: Problem


@dataclass(frozen=True, eq=False)
class Contest:
    """A layer and the kernels with tiles that are to be measured, the model's choice first."""

    layer: Layer
    candidates: Sequence[tuple[Kernel, Any]]

    def lower(self) -> list[Lowered]:
        """Functions and packed weights."""
        return [kernel.lower(self.layer.problem, config) for kernel, config in self.candidates]


class Measurer(Protocol):
    """Where contests are held.

    notes: what went wrong and was made good, for the user.
    """

    notes: list[str]

    def measure(
        self, contests: Iterable[Contest], target: str
    ) -> Generator[tuple[Contest, Measured]]:
        """Yield each with what was measured, in any order."""


class LocalMeasurer:
    """Measures on this machine, one contest after the other."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def measure(
        self, contests: Iterable[Contest], target: str
    ) -> Generator[tuple[Contest, Measured]]:
        """Yield each with what was measured."""
        row = find_target(target)
        for contest in contests:
            problem = contest.layer.problem
            yield contest, measure(problem, contest.lower(), row, thread_counts())


def tune(
    layers: Sequence[Layer],
    target: str,
    database: TuningDatabase,
    measurer: Measurer,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure each problem that the database does not know, and enter what was fastest there.

    Every entry is written as soon as it is known: whoever interrupts this keeps the others.

    Args:
        layers: those that have nothing to choose, or no kernel, are left out.
        target: whose kernels are chosen from.
        database: consulted and extended.
        measurer: where to measure; of the database's CPU model.
        progress: called with (problems measured, problems in all).

    Raises:
        ArtifactError: the database cannot be written.
        DeviceError: as the measurer.
    """
    unknown: dict[str, Layer] = {}
    for layer in layers:
        if database.find(layer.problem, target) is None and _has_tiles(layer, target):
            unknown.setdefault(problem_key(layer.problem, target), layer)
    contests = (_contest(layer, target) for layer in unknown.values())
    progress(0, len(unknown))
    with contextlib.closing(measurer.measure(contests, target)) as results:
        for done, (contest, measured) in enumerate(results, 1):
            database.add(contest.layer.problem, _fastest(contest, measured), target)
            progress(done, len(unknown))


def _has_tiles(layer: Layer, target: str) -> bool:
    if layer.problem.weight is None:
        return False
    try:
        return bool(choose(layer.op, target, layer.problem).kernel.configs(layer.problem))
    except TargetError:  # lowering says so
        return False


def _contest(layer: Layer, target: str) -> Contest:
    """The model's choice, its next favourites, and those of other kernels."""
    problem = layer.problem
    chosen = choose(layer.op, target, problem).kernel
    favourites = chosen.configs(problem)[:CANDIDATES]
    candidates: list[tuple[Kernel, Any]] = [(chosen, c.config) for c in favourites]
    for kernel in rows_for(layer.op, target, problem.dtype):
        if kernel is chosen or kernel.refuse(problem) is not None:
            continue
        for candidate in kernel.configs(problem)[:OTHERS]:
            if candidate.cycles < HOPELESS * favourites[0].cycles:
                candidates.append((kernel, candidate.config))
    return Contest(layer, candidates)


def _fastest(contest: Contest, measured: Measured) -> Tuned:
    agreement = {
        "float16": HALF_AGREEMENT, "bfloat16": BRAIN_AGREEMENT, "int8": STEP,
    }.get(contest.layer.problem.dtype, AGREEMENT)  # fmt: skip
    times = [statistics.geometric_mean(values) for values in zip(*measured.ms, strict=True)]
    best = 0
    for index in range(1, len(times)):
        agrees = measured.differences[index] <= agreement
        if agrees and times[index] < min(times[best], times[0] * (1 - LEAST_GAIN)):
            best = index
    kernel, config = contest.candidates[best]
    return Tuned(kernel.name, plain_config(config), times[best], times[0])
