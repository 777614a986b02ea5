"""What stands behind the rows of this room: which problems they take, and the lowerings."""

from __future__ import annotations

import dataclasses

import numpy as np

from nmcompile.kernels.avx512_vnni.channels.conversion import emit_dequantise, emit_quantise
from nmcompile.kernels.avx512_vnni.channels.depthwise import emit_depthwise, width_of_rest
from nmcompile.kernels.avx512_vnni.channels.flat import TABLE, emit_sum, emit_table
from nmcompile.kernels.avx512_vnni.channels.frame import Array, ending_arrays
from nmcompile.kernels.avx512_vnni.channels.gate import emit_gate
from nmcompile.kernels.avx512_vnni.channels.mean import emit_global_average
from nmcompile.kernels.avx512_vnni.channels.packing import in_blocks, pack_depthwise
from nmcompile.kernels.avx512_vnni.channels.pool import emit_average_pool, emit_max_pool
from nmcompile.kernels.avx512_vnni.channels.window import covered
from nmcompile.kernels.avx512_vnni.emit import BYTES
from nmcompile.kernels.integers import (
    Dequantise,
    Gate,
    Integers,
    Quantise,
    Sum,
    Table,
    whole_offset,
)
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import GlobalAverage, Pool2d
from nmcompile.kernels.verdict import MADE_FOR

INT32 = float(2**31)


MAX_TAPS = 81


def refuse_depthwise(problem: Problem) -> str | None:
    """Only convolutions with one input channel per group, and small kernels."""
    conv, weight = problem.conv, problem.weight
    if not conv.is_depthwise:
        return f"{MADE_FOR}depthwise convolutions, not {conv.group_in} input channels per group"
    if conv.taps > MAX_TAPS:
        return f"{conv.taps} taps: the depthwise kernel writes out at most {MAX_TAPS}"
    if BYTES % conv.group_out:
        return f"{conv.group_out} outputs per channel: the depthwise kernel takes 1, 2, 4, ... 64"
    assert weight is not None
    sums = 255.0 * np.abs(weight.astype(np.float64)).sum((1, 2, 3))
    offset = _integers(problem).offset
    return _refuse_scale(problem, sums if offset is None else sums + np.abs(offset))


def lower_depthwise(name: str, problem: Problem, config: None) -> Lowered:
    """Rows through a ring, four kernel rows in a product."""
    conv, integers = problem.conv, _integers(problem)
    assert problem.weight is not None
    width = width_of_rest(conv, integers.epilogue)
    arrays: dict[str, Array] = {"values": pack_depthwise(problem.weight, width)}
    arrays |= ending_arrays(
        in_blocks(whole_offset(problem.weight, integers), width),
        in_blocks(np.broadcast_to(integers.scale, (conv.out_channels,)), width),
        integers.steps,
    )
    # Only borders need the zero point.
    zero = integers.x_zero if any(conv.padding) else 0
    return Lowered(emit_depthwise, (name, conv, zero, integers.epilogue), arrays)


def refuse_pool(problem: Problem) -> str | None:
    """Windows without any input pixel have no largest value."""
    pool = problem.spec
    assert isinstance(pool, Pool2d)
    if pool.kind == "average":
        return _refuse_scale(problem, 255.0)
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
    return _refuse_scale(problem, 255.0)


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
    return _refuse_scale(problem, 255.0)


def lower_sum(name: str, problem: Problem, config: None) -> Lowered:
    """Two tensors of bytes, each with its scale."""
    integers = _integers(problem)
    assert isinstance(problem.spec, Sum) and integers.residual is not None
    arrays = ending_arrays(np.array([-integers.x_zero]), integers.scale, integers.steps)
    return Lowered(emit_sum, (name, problem.spec.count, integers.epilogue), arrays)


def refuse_gate(problem: Problem) -> str | None:
    """Factors that leave int32, and results where the gate was."""
    if _integers(problem).in_place:
        return "a product has no room in the memory of its gate"
    return _refuse_scale(problem, 255.0**2)


def lower_gate(name: str, problem: Problem, config: None) -> Lowered:
    """Two tensors of bytes, multiplied."""
    spec, integers = problem.spec, _integers(problem)
    assert isinstance(spec, Gate) and integers.residual is not None
    offset = np.array([-integers.x_zero, -integers.residual.zero])
    arrays = ending_arrays(offset, integers.scale, integers.steps)
    # The gate comes as the residual does, and nothing is added.
    epilogue = dataclasses.replace(integers.epilogue, residual=False)
    return Lowered(emit_gate, (name, spec, epilogue), arrays)


def _integers(problem: Problem) -> Integers:
    assert problem.integers is not None
    return problem.integers


def _refuse_scale(problem: Problem, sums: Array | float) -> str | None:
    """Results that may be out of int32's range before they are limited to a byte's.

    Args:
        problem: what is computed.
        sums: the largest magnitude of each sum.
    """
    integers = _integers(problem)
    if integers.late_bias is not None:
        return "a bias is added behind a rounding: kernels with outputs in lanes do that"
    largest = float((sums * integers.scale.astype(np.float64)).max())
    if integers.residual is not None:
        largest += 255.0 * abs(integers.residual.factor)
    if integers.out == "float32" or largest < INT32:
        return None
    return (
        f"results of up to {largest:.3g} steps of the output do not fit an int32: "
        "check the scales of the quantised model"
    )
