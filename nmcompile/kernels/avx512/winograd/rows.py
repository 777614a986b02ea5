"""What stands behind the rows of Winograd's method: verdicts, tile sizes and lowering.

Every verdict is None or a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from nmcompile.kernels.avx512.panel.rows import refuse_one_by_n
from nmcompile.kernels.avx512.winograd.config import Tiling, WinogradConfig, sides_of
from nmcompile.kernels.avx512.winograd.conv import emit_winograd
from nmcompile.kernels.avx512.winograd.prepare import keep_windows
from nmcompile.kernels.avx512.winograd.tiling import DENSE_LIST, winograd_configs
from nmcompile.kernels.avx512.winograd.transforms import SIDES
from nmcompile.kernels.problem import Candidate, Lowered, Problem
from nmcompile.kernels.verdict import MADE_FOR
from nmcompile.sparsity import OneByN

# In or out, those of all phases; below, the transforms cost more than they save.
MIN_CHANNELS = 8


def refuse_winograd(problem: Problem) -> str | None:
    """Windows for which there is a form, over enough channels."""
    conv = problem.conv
    if not sides_of(conv):
        forms = ", ".join(f"{size}x{size}/{stride}" for size, stride in SIDES)
        return f"{MADE_FOR}windows of {forms}, without dilation or groups"
    if min(conv.in_channels * conv.stride[0] ** 2, conv.out_channels) < MIN_CHANNELS:
        return f"{MADE_FOR}at least {MIN_CHANNELS} channels in and out"
    return None


def refuse_winograd_one_by_n(problem: Problem) -> str | None:
    """As `refuse_winograd`, with weights in 1xN blocks."""
    return refuse_one_by_n(problem) or refuse_winograd(problem)


def winograd_one_by_n_configs(problem: Problem) -> Sequence[Candidate]:
    """Lists of whole windows, shared by the N output channels of a block."""
    assert problem.detection is not None
    pattern = problem.detection.pattern
    assert isinstance(pattern, OneByN)
    return winograd_configs(problem.conv, pattern.n, problem.detection.density, False)


def winograd_dense_configs(problem: Problem) -> Sequence[Candidate]:
    """All windows, no lists."""
    return winograd_configs(problem.conv, DENSE_LIST, 1.0, True)


def packing_of(config: WinogradConfig) -> Hashable:
    """What of the tile sizes says how windows are kept, and what becomes of them."""
    return config.side, config.outputs, config.list_outputs, config.dense


def lower_winograd(name: str, problem: Problem, config: WinogradConfig) -> Lowered:
    """Winograd convolution whose weights are transformed when an artifact is loaded."""
    assert problem.weight is not None
    tiling = Tiling(problem.conv, config)
    channels = None if config.dense else problem.scattered
    arrays, prepare, sizes = keep_windows(f"{name}_prepare", problem.weight, tiling, channels)
    if problem.bias is not None:
        arrays["bias"] = problem.bias
    args = (name, problem.epilogue, tiling, sizes)
    return Lowered(emit_winograd, args, arrays, {"values": prepare})
