"""Integer convolutions to try kernels on, and what their results have to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from nmcompile.kernels.catalog import Kernel
from nmcompile.kernels.integers import Integers, Residual, Rounding
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.sparsity import Detection, Pattern, project
from tests.support.integer_runner import exact_sums, finished, run_integers
from tests.support.kernel_runner import activation


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2d:
    """Any geometry with an output pixel: ragged tiles, strides, asymmetric padding, dilation."""
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 3)]))
    padded = draw(st.booleans())
    sides = [draw(st.integers(0, 3)) if padded else 0 for _ in range(4)]
    conv = Conv2d(
        batch=draw(st.sampled_from([1, 1, 2])),
        in_channels=draw(st.sampled_from([1, 3, 16, 30, 64, 70, 96, 128, 200])),
        in_height=draw(st.integers(1, 10)),
        in_width=draw(st.sampled_from([1, 5, 7, 14, 17, 30])),
        out_channels=draw(st.sampled_from([1, 10, 16, 24, 32, 48, 64, 80, 100])),
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 4)])),
        padding=(sides[0], sides[1], sides[2], sides[3]),
        dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)])),
    )
    assume(conv.out_height > 0 and conv.out_width > 0)
    return conv


def make_problem(
    spec: Conv2d | Linear, pattern: Pattern, density: float | None, seed: int, **integers: Any
) -> tuple[Problem, Any]:
    """A problem whose output is its sums, unless told otherwise, and an input."""
    rng = np.random.default_rng(seed)
    if isinstance(spec, Conv2d):
        shape: tuple[int, ...] = (spec.out_channels, spec.group_in, *spec.kernel)
    else:
        shape = (spec.out_features, spec.in_features)
    drawn = rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)
    weight = project(drawn.astype(np.float32), pattern, density).astype(np.int8)
    outputs = shape[0]
    settings: dict[str, Any] = {
        "x_zero": int(rng.integers(0, 256)),
        "scale": np.ones(outputs, np.float32),
        "offset": rng.integers(-1000, 1000, outputs).astype(np.int32),
        "out": "float32",
    }
    kept = float(np.count_nonzero(weight)) / weight.size
    problem = Problem(
        spec,
        weight=weight,
        detection=Detection(pattern, (pattern,), kept),
        dtype="int8",
        integers=Integers(**(settings | integers)),
    )
    return problem, rng.integers(0, 256, problem.bytes_shapes[0]).astype(np.uint8)


def assert_sums(kernel: Kernel, problem: Problem, x: Any, config: Any = None) -> None:
    """The exact sums, as float32 has them."""
    assert kernel.refuse(problem) is None
    found = run_integers(kernel, problem, x, None, config)
    np.testing.assert_array_equal(found, exact_sums(problem, x).astype(np.float32))


@st.composite
def epilogues(draw: st.DrawFn) -> dict[str, Any]:
    """What becomes of the sums; `late_bias` says whether there is one."""
    kind = draw(st.sampled_from(["none", "none", "hard_swish", "sigmoid"]))
    out = draw(st.sampled_from(["uint8", "uint8", "float32"]))
    residual = draw(st.booleans())
    zero = draw(st.sampled_from([0, 3, 128]))
    return {
        "middle": Rounding(-100, 90, 0.61) if draw(st.booleans()) else None,
        "late_bias": draw(st.booleans()),
        "residual": Residual(draw(st.integers(0, 255)), 0.37) if residual else None,
        "activation": activation(kind),
        "factor": {"none": 1.0, "hard_swish": 17.3, "sigmoid": 190.0}[kind],
        "out": out,
        "zero": zero,
        "low": draw(st.sampled_from([0, zero])),
        "high": draw(st.sampled_from([255, 200])),
        "in_place": residual and out == "uint8" and draw(st.booleans()),
    }


def assert_finished(
    kernel: Kernel, pattern: Pattern, epilogue: dict[str, Any], outputs: int, seed: int
) -> None:
    """What the formula says, but for values within rounding of a half: few, one step away."""
    conv = Conv2d(1, 30, 6, 7, outputs, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, x = make_problem(conv, pattern, 0.5, seed)
    sums = exact_sums(problem, x)
    spread = 1 + np.ptp(sums.reshape(-1, outputs), axis=0)
    span = 12.0 if epilogue["activation"].kind != "none" else 250.0
    assert problem.integers is not None
    late = np.random.default_rng(seed + 1).uniform(-40, 40, outputs).astype(np.float32)
    settings = epilogue | {"late_bias": late if epilogue["late_bias"] else None}
    integers = replace(problem.integers, scale=(span / spread).astype(np.float32), **settings)
    problem = replace(problem, integers=integers)
    residual = None
    if integers.residual is not None:
        rng = np.random.default_rng(seed)
        residual = rng.integers(0, 256, problem.bytes_shapes[1]).astype(np.uint8)
    found = run_integers(kernel, problem, x, residual)
    wanted = finished(integers, sums, residual)
    if integers.out == "float32":
        steps = 1.0 if integers.middle is None else 0.61
        # A sum at a half of the middle rounding may be rounded the other way.
        off = np.abs(found - wanted) > 1e-4 * max(1.0, float(np.abs(wanted).max()))
        assert np.abs(found - wanted).max() <= 1.1 * steps * integers.factor
    else:
        difference = np.abs(found.astype(int) - wanted.astype(int))
        off = difference > 0
        assert difference.max() <= 1
    assert np.mean(off) <= 0.01
    assert len(np.unique(found)) > 1
