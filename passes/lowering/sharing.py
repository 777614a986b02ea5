"""One packing of each weight for all shapes that a model is compiled for.

Kernels read weights in an order that goes by their tile sizes, and which tiles are fastest goes by
the shape of the activations. Here problems with the same weight get one kernel and one packing:
those with the least geometric mean of the cycles that are counted for each problem, or measured.
Tile sizes that leave the packing as it is are each problem's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from nmcompile.kernels.catalog import Choice, Kernel, OpKind, choose
from nmcompile.kernels.problem import Candidate, Problem
from nmcompile.passes.lowering.naming import content_of

MOST_PACKINGS = 4
"""Of each kernel and problem, the best first, that are tried on the other problems."""


class Ranking(Protocol):
    """What kernels of one problem are weighed by."""

    def choose(self, op: OpKind, target: str, problem: Problem) -> Choice:
        """The best kernel of a problem by itself.

        Raises:
            TargetError: no kernel of the target computes it.
        """

    def cycles(
        self, op: OpKind, target: str, problem: Problem, kernel: Kernel, candidate: Candidate
    ) -> float:
        """Those that tile sizes of a kernel take, to compare within a problem."""


class Counted:
    """By the analytical model."""

    def choose(self, op: OpKind, target: str, problem: Problem) -> Choice:
        """As `catalog.choose`."""
        return choose(op, target, problem)

    def cycles(
        self, op: OpKind, target: str, problem: Problem, kernel: Kernel, candidate: Candidate
    ) -> float:
        """As the model counts them."""
        return candidate.cycles


class SharedChooser:
    """Decides on the kernels of problems of several shapes, as a ranking does for one."""

    def __init__(
        self, target: str, problems: Iterable[tuple[OpKind, Problem]], ranking: Ranking
    ) -> None:
        self._target, self._ranking = target, ranking
        self._groups: dict[Hashable, dict[Hashable, Problem]] = {}
        self._choices: dict[Hashable, dict[Hashable, Choice]] = {}
        for op, problem in problems:
            if problem.weight is not None:
                group = self._groups.setdefault(_weight_of(op, problem), {})
                group.setdefault(_rest_of(problem), problem)

    def __call__(self, op: OpKind, target: str, problem: Problem) -> Choice:
        """The kernel of one of the problems, and its tile sizes.

        Raises:
            TargetError: no kernel of the target computes it.
        """
        if problem.weight is None:
            return self._ranking.choose(op, target, problem)
        key = _weight_of(op, problem)
        if key not in self._choices:
            self._choices[key] = _choose_shared(op, target, self._groups[key], self._ranking)
        return self._choices[key][_rest_of(problem)]


def _weight_of(op: OpKind, problem: Problem) -> Hashable:
    assert problem.weight is not None
    return op, problem.dtype, content_of(problem.weight)


def _rest_of(problem: Problem) -> Hashable:
    """What else verdicts and tile sizes go by."""
    integers = None if problem.integers is None else problem.integers.epilogue
    detection = problem.detection
    pattern = None if detection is None else (detection.pattern, detection.order)
    return problem.spec, problem.epilogue, integers, pattern


@dataclass(frozen=True, eq=False)
class _Packing:
    """A kernel and the best tile sizes for each of several problems, with one packing.

    loss: the sum over the problems of the logarithms of cycles.
    """

    kernel: Kernel
    configs: tuple[Any, ...]
    loss: float


def _choose_shared(
    op: OpKind, target: str, problems: Mapping[Hashable, Problem], ranking: Ranking
) -> dict[Hashable, Choice]:
    own = {key: ranking.choose(op, target, problem) for key, problem in problems.items()}
    kernels = {choice.kernel.name: choice.kernel for choice in own.values()}
    each = list(problems.values())

    def cycles(problem: Problem, kernel: Kernel, candidate: Candidate) -> float:
        return ranking.cycles(op, target, problem, kernel, candidate)

    found = [
        packing
        for kernel in kernels.values()
        if all(kernel.refuse(problem) is None for problem in each)
        for packing in _packings(kernel, each, cycles)
    ]
    if not found:
        return own  # kernels without tiles have one packing each
    packing = min(found, key=lambda each: each.loss)
    name = packing.kernel.name
    return {
        key: Choice(
            packing.kernel,
            {other: text for other, text in choice.refusals.items() if other != name},
            config,
        )
        for (key, choice), config in zip(own.items(), packing.configs, strict=True)
    }


def _packings(
    kernel: Kernel,
    problems: Sequence[Problem],
    cycles: Callable[[Problem, Kernel, Candidate], float],
) -> Iterator[_Packing]:
    """The packings that are best for any of the problems, of those that all can have."""

    def ranked(problem: Problem, candidates: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        counted = [(cycles(problem, kernel, each), each) for each in candidates]
        return sorted(counted, key=itemgetter(0))

    seen = set[Hashable]()
    for problem in problems:
        tried = 0
        for _, candidate in ranked(problem, kernel.configs(problem)):
            if candidate.config in seen:
                continue
            alike = [kernel.packed_as(other, candidate.config) for other in problems]
            # Tile sizes that are ranked behind these and pack alike add nothing.
            seen.update(each.config for candidates in alike for each in candidates)
            tried += 1
            if all(alike):
                best = [ranked(one, ones)[0] for one, ones in zip(problems, alike, strict=True)]
                loss = sum(math.log(count) for count, _ in best)
                yield _Packing(kernel, tuple(each.config for _, each in best), loss)
            if tried == MOST_PACKINGS:
                break
