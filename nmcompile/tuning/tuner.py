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
from nmcompile.tuning.measure_gpu import measure_on_gpu

CANDIDATES = 8  # of the kernel that the model chose
OTHERS = 3  # of every other that can run the problem
HOPELESS = 2.0  # times the cycles of the model's choice: not measured
LEAST_GAIN = 0.02  # a smaller one may be noise: keep the model's choice
AGREEMENT = 1e-4  # of the largest output
HALF_AGREEMENT = 2.0**-9  # where outputs are rounded to float16: two units in its last place


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
    """Measure the model's choice, its next favourites, and those of other kernels."""
    favourites = choice.kernel.configs(problem)[:CANDIDATES]
    candidates: list[tuple[Kernel, Any]] = [(choice.kernel, c.config) for c in favourites]
    for kernel in rows_for(op, target, problem.dtype):
        if kernel is choice.kernel or kernel.refuse(problem) is not None:
            continue
        for candidate in kernel.configs(problem)[:OTHERS]:
            if candidate.cycles < HOPELESS * favourites[0].cycles:
                candidates.append((kernel, candidate.config))
    lowered = [kernel.lower(problem, config) for kernel, config in candidates]
    row = find_target(target)
    if row.arch:
        times, differences = measure_on_gpu(lowered, row.arch)
    else:
        # An artifact is run on one thread or on all: what is fastest on one can split badly.
        counts = sorted({1, available_threads()})
        medians, outputs = measure(problem, lowered, row.llvm_cpu, counts)
        times = [statistics.geometric_mean(values) for values in zip(*medians, strict=True)]
        scale = float(np.abs(outputs[0]).max()) or 1.0
        differences = [float(np.abs(out - outputs[0]).max()) / scale for out in outputs]
    agreement = HALF_AGREEMENT if row.dtype == "float16" else AGREEMENT
    best = 0
    for index in range(1, len(times)):
        agrees = differences[index] <= agreement
        if agrees and times[index] < min(times[best], times[0] * (1 - LEAST_GAIN)):
            best = index
    kernel, config = candidates[best]
    return Tuned(kernel.name, plain_config(config), times[best], times[0])
