"""Compiles one bfloat16 kernel alone and runs it, beside torch in float64 on the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
import tvm
from torch.nn import functional

from nmcompile.kernels.avx512_bf16.layout import padded
from nmcompile.kernels.catalog import Kernel
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import GlobalAverage, Linear, Pool2d
from tests.support.integer_runner import compile_integers
from tests.support.kernel_runner import output_shape, reference

Array = npt.NDArray[Any]
UNWRITTEN = 0xFFFF  # NaN: what an output is filled with beforehand
BEHIND = 3.0  # what the channels behind the last one hold


def bfloat16(values: Array) -> Array:
    """Rounded to the nearest, as float32."""
    rounded: Array = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def _lines(values: Array) -> Array:
    """NCHW, or rows of features, as NHWC bfloat16 with channels behind the last."""
    image = values.reshape(-1, values.shape[-1], 1, 1) if values.ndim != 4 else values
    lines = image.transpose(0, 2, 3, 1)
    missing = padded(lines.shape[3]) - lines.shape[3]
    whole = np.pad(lines, [(0, 0)] * 3 + [(0, missing)], constant_values=BEHIND)
    return np.ascontiguousarray(whole).astype(ml_dtypes.bfloat16)


def run_bfloat16(
    kernel: Kernel, problem: Problem, x: Array, residual: Array | None, config: Any = None
) -> Array:
    """Lower, compile and call; channels behind the last one are checked to stay finite."""
    lowered = kernel.lower(problem, config)
    function = compile_integers(lowered, kernel.target)
    shape = output_shape(problem)
    n, c, h, w = shape if len(shape) == 4 else (int(np.prod(shape[:-1])), shape[-1], 1, 1)
    out = np.full((n, h, w, padded(c)), UNWRITTEN, np.uint16).view(ml_dtypes.bfloat16)
    arrays = [_lines(x), *([] if residual is None else [_lines(residual)]), out]
    if problem.epilogue.in_place:
        arrays.pop()
    first, *last = (tvm.runtime.tensor(array) for array in arrays)
    function(first, *(tvm.runtime.tensor(lowered.arrays[name]) for name in lowered.operands), *last)
    found = last[-1].numpy().astype(np.float32)
    assert np.isfinite(found[..., c:]).all()
    return np.asarray(found[..., :c].transpose(0, 3, 1, 2).reshape(shape))


def expected(problem: Problem, x: Array, residual: Array | None) -> Array:
    """The same of rounded numbers in float64, where it is not rounded again."""
    spec, data = problem.spec, bfloat16(x)
    if isinstance(spec, Pool2d):
        return _pooled(spec, torch.from_numpy(data.astype(np.float64))).numpy()
    if isinstance(spec, GlobalAverage):
        return np.asarray(data.astype(np.float64).mean((2, 3)).reshape(spec.out_shape))
    assert problem.weight is not None
    # Depthwise convolutions multiply on vectors, by the weights as they are.
    depthwise = not isinstance(spec, Linear) and problem.conv.is_depthwise
    weight = problem.weight if depthwise else bfloat16(problem.weight)
    added = None if residual is None else bfloat16(residual)
    return reference(replace(problem, weight=weight), data, added)


def _pooled(pool: Pool2d, data: torch.Tensor) -> torch.Tensor:
    top, left, bottom, right = pool.padding
    if pool.kind == "max":
        whole = functional.pad(data, (left, right, top, bottom), value=-torch.inf)
        return functional.max_pool2d(whole, pool.kernel, pool.stride, 0, pool.dilation)
    whole = functional.pad(data, (left, right, top, bottom))
    inside = functional.pad(torch.ones_like(data), (left, right, top, bottom))
    sums, counts = (
        functional.avg_pool2d(part, pool.kernel, pool.stride, divisor_override=1)
        for part in (whole, inside)
    )
    return sums / (pool.kernel[0] * pool.kernel[1] if pool.count_include_pad else counts)
