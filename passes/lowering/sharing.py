"""One packing of each weight for all shapes that a model is compiled for.

Kernels read weights in an order that goes by their tile sizes, and which tiles are fastest goes by
the shape of the activations. Here problems with the same weight get one kernel and one packing:
those with the least geometric mean of the cycles that are counted for each problem. Tile sizes that
leave the packing as it is are each problem's own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from nmcompile.kernels.catalog import Choice, Kernel, OpKind, choose
from nmcompile.kernels.problem import Candidate, Problem
from nmcompile.passes.lowering.naming import content_of

MOST_PACKINGS = 4
"""Of each kernel and problem, the best first, that are tried on the other problems."""


class SharedChooser:
    """Decides on the kernels of problems of several shapes, as `choose` does for one."""

    def __init__(self, target: str, problems: Iterable[tuple[OpKind, Problem]]) -> None:
        self._target = target
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
            return choose(op, target, problem)
        key = _weight_of(op, problem)
        if key not in self._choices:
            self._choices[key] = _choose_shared(op, target, self._groups[key])
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
    best: tuple[Candidate, ...]

    @property
    def loss(self) -> float:
        return sum(math.log(candidate.cycles) for candidate in self.best)


def _choose_shared(
    op: OpKind, target: str, problems: Mapping[Hashable, Problem]
) -> dict[Hashable, Choice]:
    own = {key: choose(op, target, problem) for key, problem in problems.items()}
    kernels = {choice.kernel.name: choice.kernel for choice in own.values()}
    each = list(problems.values())
    found = [
        packing
        for kernel in kernels.values()
        if all(kernel.refuse(problem) is None for problem in each)
        for packing in _packings(kernel, each)
    ]
    if not found:
        return own  # kernels without tiles have one packing each
    packing = min(found, key=lambda each: each.loss)
    return {
        key: replace(own[key], kernel=packing.kernel, config=candidate.config)
        for key, candidate in zip(problems, packing.best, strict=True)
    }


def _packings(kernel: Kernel, problems: Sequence[Problem]) -> Iterator[_Packing]:
    """The packings that are best for any of the problems, of those that all can have."""
    seen = set[Hashable]()
    for problem in problems:
        tried = 0
        for candidate in kernel.configs(problem):
            if candidate.config in seen:
                continue
            ranked = [kernel.packed_as(other, candidate.config) for other in problems]
            # Tile sizes that are ranked behind these and pack alike add nothing.
            seen.update(each.config for candidates in ranked for each in candidates)
            tried += 1
            if all(ranked):
                yield _Packing(kernel, tuple(candidates[0] for candidates in ranked))
            if tried == MOST_PACKINGS:
                break
