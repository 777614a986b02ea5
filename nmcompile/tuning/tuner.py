"""Choosing kernels by measuring the analytical model's favourites."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from nmcompile.kernels.catalog import Choice, Kernel, OpKind, choose, rows_for
from nmcompile.kernels.problem import Problem
from nmcompile.runtime.native import available_threads
from nmcompile.targets import find_target
from nmcompile.tuning.database import Tuned, TuningDatabase, plain_config
from nmcompile.tuning.measure import measure

CANDIDATES = 8  # of the kernel that the model chose
DENSE_CANDIDATES = 2  # of the dense one beside a sparse one, where that can win
DENSE_FROM = 0.4  # density; below, no dense kernel was ever faster
LEAST_GAIN = 0.02  # a smaller one may be noise: keep the model's choice
AGREEMENT = 1e-4  # of the largest output


class Tuner:
    """Measures each problem that the database does not know on this machine."""

    def __init__(self, database: TuningDatabase) -> None:
        """Consult and extend `database`."""
        self.database = database

    def choose(self, op: OpKind, target: str, problem: Problem) -> Choice:
        """The fastest of the candidates.

        Raises:
            TargetError: as `catalog.choose`.
            ArtifactError: the database cannot be written.
        """
        choice = choose(op, target, problem)
        if choice.kernel.configs(problem) and self.database.find(problem) is None:
            self.database.add(problem, _fastest(op, target, problem, choice))
        return self.database.choose(op, target, problem)


def _fastest(op: OpKind, target: str, problem: Problem, choice: Choice) -> Tuned:
    """Measure the model's choice, its next favourites, and the dense kernel where that can win."""
    candidates: list[tuple[Kernel, Any]] = []
    for kernel in rows_for(op, target, problem.dtype):
        if kernel.name in choice.refusals:
            continue
        limit = CANDIDATES
        if kernel is not choice.kernel:
            density = problem.detection.density if problem.detection is not None else 1.0
            limit = DENSE_CANDIDATES if density >= DENSE_FROM else 0
        candidates += [(kernel, config) for config in kernel.configs(problem)[:limit]]
    lowered = [kernel.lower(problem, config) for kernel, config in candidates]
    # An artifact is run on one thread or on all: what is fastest on one can split badly.
    counts = sorted({1, available_threads()})
    medians, outputs = measure(problem, lowered, find_target(target).llvm_cpu, counts)
    times = [statistics.geometric_mean(values) for values in zip(*medians, strict=True)]
    scale = float(np.abs(outputs[0]).max()) or 1.0
    best = 0
    for index in range(1, len(times)):
        agrees = np.abs(outputs[index] - outputs[0]).max() <= AGREEMENT * scale
        if agrees and times[index] < min(times[best], times[0] * (1 - LEAST_GAIN)):
            best = index
    kernel, config = candidates[best]
    return Tuned(kernel.name, plain_config(config), times[best], times[0])
