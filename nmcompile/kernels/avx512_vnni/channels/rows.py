"""What stands behind the rows of this room: which problems they take, and the lowerings."""

from __future__ import annotations

import numpy as np

from nmcompile.kernels.avx512_vnni.channels.conversion import emit_dequantise, emit_quantise
from nmcompile.kernels.avx512_vnni.channels.flat import TABLE, emit_sum, emit_table
from nmcompile.kernels.avx512_vnni.channels.frame import ending_arrays
from nmcompile.kernels.avx512_vnni.channels.mean import emit_global_average
from nmcompile.kernels.avx512_vnni.channels.pool import emit_average_pool, emit_max_pool
from nmcompile.kernels.avx512_vnni.channels.window import covered
from nmcompile.kernels.integers import Integers
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Dequantise, GlobalAverage, Pool2d, Quantise, Sum, Table

INT32 = float(2**31)


def refuse_pool(problem: Problem) -> str | None:
    """Windows without any input pixel have no largest value."""
    pool = problem.spec
    assert isinstance(pool, Pool2d)
    if pool.kind == "average":
        return _refuse_scale(problem, pool.kernel[0] * pool.kernel[1])
    if covered(pool, 0).min() and covered(pool, 1).min():
        return None
    return "a window of the max pooling lies wholly in the padding: pad by less than the kernel"


def lower_pool(name: str, problem: Problem, config: None) -> Lowered:
    """Max and average pooling."""
    pool = problem.spec
    assert isinstance(pool, Pool2d)
    if pool.kind == "max":
        return Lowered(emit_max_pool, (name, pool), {})
    integers = _integers(problem)
    inside, divisor = (
        np.outer(covered(pool, 0, padding=padded), covered(pool, 1, padding=padded)).reshape(-1)
        for padded in (False, pool.count_include_pad)
    )
    scale = integers.scale[0] / np.maximum(divisor, 1).astype(np.float32)
    arrays = ending_arrays(-integers.x_zero * inside, scale, integers.steps)
    return Lowered(emit_average_pool, (name, pool, integers.epilogue), arrays)


def refuse_global_average(problem: Problem) -> str | None:
    """Sums that an int32 does not hold."""
    pool = problem.spec
    assert isinstance(pool, GlobalAverage)
    pixels = pool.height * pool.width
    if 255 * pixels >= INT32:
        return f"{pixels} pixels: their sum may not fit an int32"
    return _refuse_scale(problem, 1)


def lower_global_average(name: str, problem: Problem, config: None) -> Lowered:
    """Mean over all pixels."""
    pool, integers = problem.spec, _integers(problem)
    assert isinstance(pool, GlobalAverage)
    pixels = pool.height * pool.width
    offset, scale = np.array([-integers.x_zero * pixels]), integers.scale / np.float32(pixels)
    arrays = ending_arrays(offset, scale, integers.steps)
    return Lowered(emit_global_average, (name, pool, integers.epilogue), arrays)


def lower_quantise(name: str, problem: Problem, config: None) -> Lowered:
    """From float32 to u8, and from NCHW to NHWC."""
    integers = _integers(problem)
    assert isinstance(problem.spec, Quantise)
    args = (name, problem.spec, integers.zero, integers.low, integers.high)
    return Lowered(emit_quantise, args, {"scale": integers.scale})


def lower_dequantise(name: str, problem: Problem, config: None) -> Lowered:
    """From u8 to float32, and from NHWC to NCHW."""
    integers = _integers(problem)
    assert isinstance(problem.spec, Dequantise)
    args = (name, problem.spec, integers.x_zero)
    return Lowered(emit_dequantise, args, {"scale": integers.scale})


def lower_table(name: str, problem: Problem, config: None) -> Lowered:
    """A function of one byte."""
    assert isinstance(problem.spec, Table) and problem.weight is not None
    assert problem.weight.shape == (TABLE,) and problem.weight.dtype == np.uint8
    return Lowered(emit_table, (name, problem.spec.count), {"table": problem.weight})


def refuse_two(problem: Problem) -> str | None:
    """Factors that leave int32 before the result is limited."""
    return _refuse_scale(problem, 1)


def lower_sum(name: str, problem: Problem, config: None) -> Lowered:
    """Two tensors of bytes, each with its scale."""
    integers = _integers(problem)
    assert isinstance(problem.spec, Sum) and integers.residual is not None
    arrays = ending_arrays(np.array([-integers.x_zero]), integers.scale, integers.steps)
    return Lowered(emit_sum, (name, problem.spec.count, integers.epilogue), arrays)


def _integers(problem: Problem) -> Integers:
    assert problem.integers is not None
    return problem.integers


def _refuse_scale(problem: Problem, taps: int) -> str | None:
    """Results that may be out of int32's range before they are limited to a byte's."""
    integers = _integers(problem)
    largest = 255.0 * taps * float(integers.scale.max())
    if integers.residual is not None:
        largest += 255.0 * abs(integers.residual.factor)
    if integers.out == "float32" or largest < INT32:
        return None
    return (
        f"one step of the input counts {float(integers.scale.max()):g} of the output's: "
        "results may exceed an int32; check the scales of the quantised model"
    )
