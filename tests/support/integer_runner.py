"""Compiles one integer kernel of the catalogue alone and runs it, beside the formula in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from torch.nn import functional

from nmcompile.kernels.catalog import Kernel
from nmcompile.kernels.integers import Integers
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.kernels.spec import Conv2d
from nmcompile.targets import find_target
from tests.support.fence import between_guards
from tests.support.kernel_runner import ACTIVATIONS

Array = npt.NDArray[Any]
UNWRITTEN = {"uint8": 0xA5, "float32": np.nan}  # what an output is filled with beforehand


def compile_integers(lowered: Lowered, target: str = "avx512_vnni") -> Any:
    """The function of one lowering, for this machine."""
    options = find_target(target).llvm_options
    function = lowered.emit_func().with_attr("global_symbol", "kernel")
    module = tvm.IRModule({"kernel": function})
    library = tvm.compile(module, target=tvm.target.Target(options), tir_pipeline=TIR_PIPELINE)
    return library["kernel"]


def run_integers(
    kernel: Kernel, problem: Problem, x: Array, residual: Array | None, config: Any = None
) -> Array:
    """Lower, compile and call; in place, the residual's copy is the output.

    What leaves a tensor ends the process.
    """
    assert problem.integers is not None
    lowered = kernel.lower(problem, config)
    function = compile_integers(lowered, kernel.target)
    operands = [tvm.runtime.tensor(lowered.arrays[name]) for name in lowered.operands]
    dtype = problem.integers.out
    out = np.full(problem.bytes_shapes[1], UNWRITTEN[dtype], dtype)
    arrays = [x, *([] if residual is None else [residual]), out]
    if problem.integers.in_place:
        arrays.pop()
    guarded = [between_guards(array) for array in arrays]
    first, *last = (tvm.runtime.from_dlpack(array) for array in guarded)
    function(first, *operands, *last)
    return guarded[-1]


def exact_sums(problem: Problem, x: Array) -> npt.NDArray[np.int64]:
    """What is summed, in torch's float64, where such sums are exact: (..., out)."""
    integers, spec = problem.integers, problem.spec
    assert integers is not None and problem.weight is not None
    data = torch.from_numpy(x.astype(np.float64) - integers.x_zero)
    weight = torch.from_numpy(problem.weight.astype(np.float64))
    if isinstance(spec, Conv2d):
        top, left, bottom, right = spec.padding
        padded = functional.pad(data.permute(0, 3, 1, 2), (left, right, top, bottom))
        y = functional.conv2d(padded, weight, None, spec.stride, 0, spec.dilation, spec.groups)
        y = y.permute(0, 2, 3, 1)
    else:
        y = functional.linear(data, weight)
    sums = np.asarray(y.numpy(), np.int64)
    if integers.offset is not None:
        sums += integers.offset
    return sums


def finished(integers: Integers, sums: npt.NDArray[np.int64], residual: Array | None) -> Array:
    """What `nmcompile.kernels.integers` says becomes of the sums, in its order, in float32."""
    v: Array = sums.astype(np.float32) * integers.scale
    if integers.middle is not None:
        middle = integers.middle
        v = np.clip(np.rint(v), middle.low, middle.high) * np.float32(middle.factor)
    if integers.late_bias is not None:
        v = v + integers.late_bias
    if integers.residual is not None:
        assert residual is not None
        shifted = residual.astype(np.float32) - integers.residual.zero
        v = v + shifted * np.float32(integers.residual.factor)
    if integers.activation.kind != "none":
        real = torch.from_numpy(v.astype(np.float64))
        v = ACTIVATIONS[integers.activation.kind](real).numpy().astype(np.float32)
        v = v * np.float32(integers.factor)
    if integers.out == "float32":
        return v
    y: Array = np.clip(np.rint(v) + integers.zero, integers.low, integers.high)
    return y.astype(np.uint8)
