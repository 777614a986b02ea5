"""Verdicts and tile sizes that rows of the catalogue share, whatever their target.

A verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from nmcompile.kernels.problem import Candidate, Problem
from nmcompile.sparsity import Dense, Pattern

MADE_FOR = "made for "  # opens the refusal of a kernel that is for other problems altogether


def accept(problem: Problem) -> str | None:
    """Take every problem."""
    return None


def refuse_pattern(problem: Problem, kinds: tuple[type[Pattern], ...], names: str) -> str | None:
    """Weights that do not hold a pattern of some `kinds`."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    if isinstance(pattern, Dense):
        return f"the weight is dense (density {density:.2f})"
    if not isinstance(pattern, kinds):
        return f"{MADE_FOR}{names}, not {pattern}"
    return None


def one_config(problem: Problem) -> Sequence[Candidate]:
    """Nothing to choose: kernels without tiles."""
    return ()


Configs = Callable[[Problem], Sequence[Candidate]]
Repacked = Callable[[Problem, Any], Sequence[Candidate]]


def never_packed(problem: Problem, config: Any) -> Sequence[Candidate]:
    """Kernels without tiles: there is one packing."""
    return ()


def packed_by(configs: Configs, packing: Callable[[Any], Hashable]) -> Repacked:
    """Those of a kernel's tile sizes whose packing is the same, where some of their fields say so.

    Args:
        configs: all of a problem, the best first.
        packing: what of them says how weights are packed.
    """

    def alike(problem: Problem, config: Any) -> Sequence[Candidate]:
        wanted = packing(config)
        return [each for each in configs(problem) if packing(each.config) == wanted]

    return alike


def decline_slower(problem: Problem, own: Configs, other: Configs, name: str) -> str | None:
    """One kernel where the model counts fewer cycles for another."""
    cycles, others = own(problem)[0].cycles, other(problem)[0].cycles
    if cycles <= others:
        return None
    return (
        f"{name} is faster: {others / 1e6:.2g} million cycles counted, against {cycles / 1e6:.2g}"
    )
