"""Compiles one integer kernel of the catalogue alone and runs it, beside what it should compute."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from nmcompile.kernels.catalog import OpKind, choose
from nmcompile.kernels.integers import Integers
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.kernels.problem import Problem
from nmcompile.targets import find_target

Array = npt.NDArray[Any]
TARGET = "avx512_vnni"


def run_integer(
    op: OpKind,
    problem: Problem,
    x: Array,
    out_shape: tuple[int, ...],
    out_dtype: str = "uint8",
    residual: Array | None = None,
) -> Array:
    """Lower, compile and call; in place, the copy of the residual is the output."""
    lowered = choose(op, TARGET, problem).kernel.lower(problem)
    target = find_target(TARGET)
    function = lowered.emit_func().with_attr("global_symbol", "kernel")
    module = tvm.compile(
        tvm.IRModule({"kernel": function}),
        target=tvm.target.Target(
            {"kind": "llvm", "mcpu": target.llvm_cpu, "mattr": target.llvm_features.split(",")}
        ),
        tir_pipeline=TIR_PIPELINE,
    )
    out = np.full(out_shape, 205 if out_dtype == "uint8" else np.nan, out_dtype)
    arrays = [x, *(lowered.arrays[name] for name in lowered.operands)]
    arrays += [] if residual is None else [residual]
    in_place = problem.integers is not None and problem.integers.in_place
    arrays += [] if in_place else [out]
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
    module["kernel"](*tensors)
    result: Array = tensors[-1].numpy()
    return result


def ended(sums: Array, scale: Array, integers: Integers, residual: Array | None = None) -> Array:
    """What the epilogue makes of int64 sums, in float32 as `nmcompile.kernels.integers` says."""
    value = sums.astype(np.float32) * np.asarray(scale, np.float32)
    if integers.middle is not None:
        middle = integers.middle
        value = np.clip(np.rint(value), middle.low, middle.high) * np.float32(middle.factor)
    if residual is not None:
        assert integers.residual is not None
        added = residual.astype(np.float32) - np.float32(integers.residual.zero)
        value = value + added * np.float32(integers.residual.factor)
    if integers.activation.kind == "hard_swish":
        value = value * np.clip(value / np.float32(6) + np.float32(0.5), 0, 1)
        value = value * np.float32(integers.factor)
    if integers.out == "float32":
        return np.asarray(value)
    limited = np.clip(np.rint(value) + integers.zero, integers.low, integers.high)
    result: Array = limited.astype(np.uint8)
    return result
