"""Single convolutions of the bench models as problems for kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nmcompile.kernels.integers import Integers
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from nmcompile.sparsity import Dense, Detection, Pattern, detect, parse_pattern, project

STEP = 1e-4
"""What a unit of the sum counts in steps of the output, of `make_int8_problem`."""

NARROWEST = 16  # channels of a prunable layer, and the widest block of outputs that has to fit


def is_prunable(conv: Conv2d) -> bool:
    """Whether a layer is pruned: as in the bench models, no stem and no depthwise convolution."""
    return conv.group_in >= NARROWEST and conv.out_channels % NARROWEST == 0


def title_of(conv: Conv2d) -> str:
    """The shape as tables name it."""
    size, stride = conv.kernel[0], conv.stride[0]
    return f"{conv.in_channels}->{conv.out_channels} {size}x{size}/{stride} {conv.in_height}²"


def make_int8_problem(conv: Conv2d, pattern: Pattern, density: float | None = None) -> Problem:
    """As `make_problem`, of u8 to u8 with int8 weights and zero points of 0; no zeros but its."""
    problem = make_problem(conv, pattern, density)
    floats = problem.weight
    assert floats is not None
    weight = np.rint(floats / np.abs(floats).max() * 127).astype(np.int8)
    weight[(weight == 0) & (floats != 0)] = 1
    outputs = conv.out_channels
    scale, offset = np.full(outputs, STEP, np.float32), np.zeros(outputs, np.int32)
    integers = Integers(0, scale, offset)
    return Problem(
        conv, weight=weight, detection=problem.detection, dtype="int8", integers=integers
    )


def make_problem(conv: Conv2d, pattern: Pattern, density: float | None = None) -> Problem:
    """A convolution with bias, ReLU and seeded weights of a pattern, which is taken as given."""
    random = np.random.default_rng(0)
    shape = (conv.out_channels, conv.group_in, *conv.kernel)
    weight = random.standard_normal(shape, dtype=np.float32)
    if not isinstance(pattern, Dense):
        weight = project(weight, pattern, density)
    bias = random.standard_normal(conv.out_channels, dtype=np.float32)
    epilogue = Epilogue(bias=True, activation=Activation("relu"))
    kept = float(np.count_nonzero(weight)) / weight.size
    return Problem(conv, epilogue, weight, bias, Detection(pattern, (pattern,), kept))


def make_bfloat16_problem(conv: Conv2d, pattern: Pattern, density: float | None = None) -> Problem:
    """As `make_problem`, of bfloat16."""
    return replace(make_problem(conv, pattern, density), dtype="bfloat16")


TARGETS = {
    "float32": ("avx512",),
    "int8": ("avx512_vnni", "avx512_amx"),
    "bfloat16": ("avx512_bf16", "avx512_amx"),
}
"""Those that compute in a precision, the oldest first."""

MAKERS = {
    "float32": make_problem,
    "int8": make_int8_problem,
    "bfloat16": make_bfloat16_problem,
}


def problem_of(conv: Conv2d, spec: str, dtype: str = "float32") -> Problem | None:
    """A convolution with a pattern as detected in its weights; None where it is not pruned."""
    name, _, density = spec.partition("@")
    pattern = parse_pattern(name)
    if not isinstance(pattern, Dense) and not is_prunable(conv):
        return None
    problem = MAKERS[dtype](conv, pattern, float(density) if density else None)
    assert problem.weight is not None
    return replace(problem, detection=detect(problem.weight))
