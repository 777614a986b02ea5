"""Compiles one integer kernel of the catalogue alone and runs it, beside what it should compute."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm

from nmcompile.kernels.catalog import OpKind, choose
from nmcompile.kernels.integers import Integers
from nmcompile.kernels.problem import Problem
from tests.support.fence import between_guards
from tests.support.integer_runner import compile_integers, finished

Array = npt.NDArray[Any]
TARGET = "avx512_vnni"
UNWRITTEN = 205  # what an output holds before, so that nothing unwritten passes


def run_integer(
    op: OpKind,
    problem: Problem,
    x: Array,
    out_shape: tuple[int, ...],
    residual: Array | None = None,
) -> Array:
    """Lower, compile and call; in place, the copy of the residual is the output.

    What reads or writes outside of a tensor ends the process (`between_guards`).
    """
    lowered = choose(op, TARGET, problem).kernel.lower(problem)
    function = compile_integers(lowered, TARGET)
    integers = problem.integers or Integers(0, np.ones(1, np.float32))
    out = np.full(out_shape, UNWRITTEN if integers.out == "uint8" else np.nan, integers.out)
    arrays = [x, *(lowered.arrays[name] for name in lowered.operands)]
    arrays += [] if residual is None else [residual]
    arrays += [] if integers.in_place else [out]
    guarded = [between_guards(array) for array in arrays]
    function(*(tvm.runtime.from_dlpack(array) for array in guarded))
    return guarded[-1]


def ended(sums: Array, scale: Array, integers: Integers, residual: Array | None = None) -> Array:
    """What the epilogue makes of int64 sums that count `scale` each; None adds no residual."""
    added = None if residual is None else integers.residual
    return finished(dataclasses.replace(integers, scale=scale, residual=added), sums, residual)


def assert_agree(found: Array, expected: Array, *, exact: bool = True) -> None:
    """Equal; where `exact` is not, one step off where a fused multiply-add decides a half.

    Decimal scales put one value in a hundred on a half, so this is as often as that is allowed.
    """
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype == np.float32:
        span = max(float(np.abs(expected).max()), 1e-6)
        assert float(np.abs(found - expected).max()) <= 2e-6 * span
        return
    off = np.abs(found.astype(np.int64) - expected)
    if exact:
        assert int(off.max()) == 0
    else:
        assert int(off.max()) <= 1
        assert np.count_nonzero(off) <= 2 + found.size // 50
