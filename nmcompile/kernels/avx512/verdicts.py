"""Which AVX-512 rows of the catalogue take a problem: what a row cannot do, or others do faster.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nmcompile.kernels.avx512.rows import (
    dense_configs,
    nm_configs,
    one_by_n_configs,
    winograd_dense_configs,
    winograd_one_by_n_configs,
)
from nmcompile.kernels.avx512.winograd_config import sides_of
from nmcompile.kernels.avx512.winograd_transforms import SIDES
from nmcompile.kernels.problem import MADE_FOR, Candidate, Problem
from nmcompile.sparsity import NM, Dense, OneByN, Pattern, Unstructured

# Densities above which the direct dense kernel is faster. N:M is bound by L1 loads, whose rate
# depends on the machine and its neighbours: where they are fast, ResNet-50's 1x1 layers break even
# from 0.65 to 0.81 (benchmarks/results/density.json), where they are slow, lower.
ONE_BY_N_BREAK_EVEN = 0.92
NM_BREAK_EVEN = 0.7
MAX_DEPTHWISE_TAPS = 81
MIN_GROUP_OUTPUTS = 8  # below, packing the panel costs more than multiplying it
# In or out, those of all phases; below, the transforms cost more than they save.
MIN_WINOGRAD_CHANNELS = 8

Configs = Callable[[Problem], Sequence[Candidate]]


def accept(problem: Problem) -> str | None:
    """Take every problem."""
    return None


def refuse_depthwise(problem: Problem) -> str | None:
    """Only convolutions with one input channel per group."""
    conv = problem.conv
    if conv.is_depthwise and conv.taps <= MAX_DEPTHWISE_TAPS:
        return None
    if conv.is_depthwise:
        return f"{conv.taps} taps: the depthwise kernel writes out at most {MAX_DEPTHWISE_TAPS}"
    return f"{MADE_FOR}depthwise convolutions, not {problem.conv.group_in} input channels per group"


def refuse_one_by_n(problem: Problem) -> str | None:
    """Weights in 1xN blocks."""
    return _refuse_pattern(problem, (OneByN,), "1xN")


def decline_one_by_n(problem: Problem) -> str | None:
    """Above break-even, or where a dense kernel is expected to be faster."""
    return _decline_direct(problem, "1xN", ONE_BY_N_BREAK_EVEN, one_by_n_configs)


def refuse_nm(problem: Problem) -> str | None:
    """N:M and unstructured weights."""
    return _refuse_pattern(problem, (NM, Unstructured), "N:M or unstructured")


def decline_nm(problem: Problem) -> str | None:
    """Above break-even, or where a dense kernel is expected to be faster."""
    return _decline_direct(problem, "N:M or unstructured", NM_BREAK_EVEN, nm_configs)


def refuse_winograd(problem: Problem) -> str | None:
    """Windows for which there is a form, over enough channels."""
    conv = problem.conv
    if not sides_of(conv):
        forms = ", ".join(f"{size}x{size}/{stride}" for size, stride in SIDES)
        return f"{MADE_FOR}windows of {forms}, without dilation or groups"
    if min(conv.in_channels * conv.stride[0] ** 2, conv.out_channels) < MIN_WINOGRAD_CHANNELS:
        return f"{MADE_FOR}at least {MIN_WINOGRAD_CHANNELS} channels in and out"
    return None


def decline_winograd(problem: Problem) -> str | None:
    """Where the direct kernel is expected to be faster."""
    return _decline_slower(problem, winograd_dense_configs, dense_configs, "the direct kernel")


def refuse_winograd_one_by_n(problem: Problem) -> str | None:
    """As `refuse_winograd`, with weights in 1xN blocks."""
    return refuse_one_by_n(problem) or refuse_winograd(problem)


def decline_winograd_one_by_n(problem: Problem) -> str | None:
    """Above break-even, or where another kernel is expected to be faster."""
    return _decline_density(problem, "1xN", ONE_BY_N_BREAK_EVEN) or _decline_slower(
        problem, winograd_one_by_n_configs, one_by_n_configs, "the direct kernel"
    )


def _refuse_pattern(problem: Problem, kinds: tuple[type[Pattern], ...], names: str) -> str | None:
    """Weights that do not hold a pattern of some `kinds`."""
    assert problem.detection is not None
    pattern, density = problem.detection.pattern, problem.detection.density
    if isinstance(pattern, Dense):
        return f"the weight is dense (density {density:.2f})"
    if not isinstance(pattern, kinds):
        return f"{MADE_FOR}{names}, not {pattern}"
    return None


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
    return _decline_slower(problem, own, winograd_dense_configs, "Winograd with all weights")


def _decline_density(problem: Problem, names: str, break_even: float) -> str | None:
    assert problem.detection is not None
    density = problem.detection.density
    if density <= break_even:
        return None
    return f"density {density:.2f} is above the {names} break-even of {break_even}"


def _decline_slower(problem: Problem, own: Configs, other: Configs, name: str) -> str | None:
    """One kernel where the model counts fewer cycles for another."""
    cycles, others = own(problem)[0].cycles, other(problem)[0].cycles
    if cycles <= others:
        return None
    return (
        f"{name} is faster: {others / 1e6:.2g} million cycles counted, against {cycles / 1e6:.2g}"
    )
