"""Which family of AVX-512 kernels is expected to be faster where several can compute a problem.

What a family cannot do is its own to say (`rows.py` of each); here are the verdicts that weigh one
against another. Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from nmcompile.kernels.avx512.lanes import rows as lanes
from nmcompile.kernels.avx512.panel.rows import dense_configs, nm_configs, one_by_n_configs
from nmcompile.kernels.avx512.winograd.rows import (
    refuse_winograd,
    winograd_dense_configs,
    winograd_one_by_n_configs,
)
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.verdict import Configs, decline_slower

# Densities above which the direct dense kernel is faster. N:M is bound by L1 loads, whose rate
# depends on the machine and its neighbours: where they are fast, ResNet-50's 1x1 layers break even
# from 0.65 to 0.81 (benchmarks/results/density.json), where they are slow, lower.
ONE_BY_N_BREAK_EVEN = 0.92
NM_BREAK_EVEN = 0.7
MIN_GROUP_OUTPUTS = 8  # below, packing the panel costs more than multiplying it


def decline_one_by_n(problem: Problem) -> str | None:
    """Above break-even, or where a dense kernel is expected to be faster."""
    return _decline_direct(problem, "1xN", ONE_BY_N_BREAK_EVEN, one_by_n_configs)


def decline_nm(problem: Problem) -> str | None:
    """Above break-even, or where a dense kernel is expected to be faster."""
    return _decline_direct(problem, "N:M or unstructured", NM_BREAK_EVEN, nm_configs)


def decline_winograd(problem: Problem) -> str | None:
    """Where the direct kernel is expected to be faster."""
    return decline_slower(problem, winograd_dense_configs, dense_configs, "the direct kernel")


def decline_winograd_one_by_n(problem: Problem) -> str | None:
    """Above break-even, or where another kernel is expected to be faster."""
    return _decline_density(problem, "1xN", ONE_BY_N_BREAK_EVEN) or decline_slower(
        problem, winograd_one_by_n_configs, one_by_n_configs, "the direct kernel"
    )


def decline_lanes_one_by_n(problem: Problem) -> str | None:
    """Above break-even, or where another kernel is expected to be faster."""
    return decline_linear_one_by_n(problem, lanes.one_by_n_configs) or decline_slower(
        problem, lanes.one_by_n_configs, one_by_n_configs, "the kernel over panels"
    )


def decline_lanes_nm(problem: Problem) -> str | None:
    """The same."""
    return decline_linear_nm(problem, lanes.nm_configs) or decline_slower(
        problem, lanes.nm_configs, nm_configs, "the kernel over panels"
    )


def decline_linear_one_by_n(problem: Problem, own: Configs = one_by_n_configs) -> str | None:
    """Above break-even, or where all weights are expected to be faster."""
    return _decline_density(problem, "1xN", ONE_BY_N_BREAK_EVEN) or decline_slower(
        problem, own, lanes.dense_configs, "the dense kernel"
    )


def decline_linear_nm(problem: Problem, own: Configs = nm_configs) -> str | None:
    """The same."""
    return _decline_density(problem, "N:M or unstructured", NM_BREAK_EVEN) or decline_slower(
        problem, own, lanes.dense_configs, "the dense kernel"
    )


def _decline_direct(problem: Problem, names: str, break_even: float, own: Configs) -> str | None:
    """Skipping zeros without a transform, where multiplying them is faster."""
    if problem.conv.group_out < MIN_GROUP_OUTPUTS:
        return (
            f"{problem.conv.group_out} output channels per group: under {MIN_GROUP_OUTPUTS} the "
            "dense kernel is faster"
        )
    reason = _decline_density(problem, names, break_even)
    if reason is not None or refuse_winograd(problem) is not None:
        return reason
    return decline_slower(problem, own, winograd_dense_configs, "Winograd with all weights")


def _decline_density(problem: Problem, names: str, break_even: float) -> str | None:
    assert problem.detection is not None
    density = problem.detection.density
    if density <= break_even:
        return None
    return f"density {density:.2f} is above the {names} break-even of {break_even}"
