"""What stands behind the rows of sliding windows: which they take, and the lowerings."""

from __future__ import annotations

import numpy as np

from nmcompile.kernels.avx512.sliding.loops import Window
from nmcompile.kernels.avx512.sliding.window import (
    average_scale,
    emit_depthwise,
    emit_global_average,
    emit_pool,
)
from nmcompile.kernels.problem import Lowered, Problem, with_bias
from nmcompile.kernels.spec import GlobalAverage, Pool2d
from nmcompile.kernels.verdict import MADE_FOR

MAX_DEPTHWISE_TAPS = 81


def refuse_depthwise(problem: Problem) -> str | None:
    """Only convolutions with one input channel per group."""
    conv = problem.conv
    if conv.is_depthwise:
        written = conv.kernel[1] if Window.of(conv).is_tall else conv.taps
        if written <= MAX_DEPTHWISE_TAPS:
            return None
        return f"{written} taps: the depthwise kernel writes out at most {MAX_DEPTHWISE_TAPS}"
    return f"{MADE_FOR}depthwise convolutions, not {problem.conv.group_in} input channels per group"


def lower_depthwise(name: str, problem: Problem, config: None) -> Lowered:
    """Window kernel, one channel at a time."""
    assert problem.weight is not None
    values = np.ascontiguousarray(problem.weight).reshape(-1)
    args = (name, problem.conv, problem.epilogue)
    return Lowered(emit_depthwise, args, with_bias(values, problem.bias))


def lower_pool(name: str, problem: Problem, config: None) -> Lowered:
    """Max and average pooling."""
    pool = problem.spec
    assert isinstance(pool, Pool2d)
    scale = {"scale": average_scale(pool).reshape(-1)} if pool.kind == "average" else {}
    return Lowered(emit_pool, (name, pool), scale)


def lower_global_average(name: str, problem: Problem, config: None) -> Lowered:
    """Mean over all pixels."""
    pool = problem.spec
    assert isinstance(pool, GlobalAverage)
    return Lowered(emit_global_average, (name, pool), {})
