"""Compiles one kernel of the catalogue alone and runs it, beside a float64 reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tvm
from hypothesis import strategies as st
from torch.nn import functional

from nmcompile.kernels.catalog import Kernel, OpKind, choose
from nmcompile.kernels.problem import Problem, Spec
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, GlobalAverage, Linear, Pool2d
from nmcompile.machine.trial import ready_kernels
from nmcompile.targets import find_target
from nmcompile.tuning.library import compile_kernels
from tests.support.fence import between_guards

Array = npt.NDArray[Any]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "clip": lambda y: y.clamp(-0.25, 1.5),
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "hard_sigmoid": functional.hardsigmoid,
    "hard_swish": functional.hardswish,
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
}


def activation(kind: str) -> Activation:
    return Activation("clip", -0.25, 1.5) if kind == "clip" else Activation(kind)  # type: ignore[arg-type]


@st.composite
def epilogues(draw: st.DrawFn, kinds: list[str]) -> Epilogue:
    """With and without bias and residual, which is overwritten or not."""
    residual = draw(st.booleans())
    return Epilogue(
        bias=draw(st.booleans()),
        residual=residual,
        activation=activation(draw(st.sampled_from(kinds))),
        in_place=residual and draw(st.booleans()),
    )


def run_kernel(
    kernel: Kernel,
    problem: Problem,
    x: Array,
    residual: Array | None,
    config: Any = None,
) -> Array:
    """`compile_kernel`, for one input."""
    return compile_kernel(kernel, problem, config)(x, residual)


def compile_kernel(
    kernel: Kernel, problem: Problem, config: Any = None
) -> Callable[[Array, Array | None], Array]:
    """What the kernel makes of an input and a residual.

    The output starts out as NaN, so that nothing unwritten passes. In place, the residual's copy is
    the output. What leaves a tensor ends the process.
    """
    lowered = kernel.lower(problem, config)
    library = compile_kernels([lowered], find_target(kernel.target))
    ((function, operands),) = ready_kernels(library.module, library.kernels, library.arrays)

    def run(x: Array, residual: Array | None) -> Array:
        out = np.full(output_shape(problem), np.nan, np.float32)
        arrays = [x, *([] if residual is None else [residual]), out]
        if problem.epilogue.in_place:
            arrays.pop()
        guarded = [between_guards(array) for array in arrays]
        first, *last = (tvm.runtime.from_dlpack(array) for array in guarded)
        function(first, *operands, *last)
        return guarded[-1]

    return run


def output_shape(problem: Problem) -> tuple[int, ...]:
    spec = problem.spec
    if isinstance(spec, Conv2d):
        return (spec.batch, spec.out_channels, spec.out_height, spec.out_width)
    if isinstance(spec, Linear):
        return (*spec.lead, spec.out_features)
    if isinstance(spec, Pool2d):
        return (spec.batch, spec.channels, spec.out_height, spec.out_width)
    assert isinstance(spec, GlobalAverage)
    return spec.out_shape


def reference(problem: Problem, x: Array, residual: Array | None) -> Array:
    """The same in torch, float64."""
    spec, data = problem.spec, torch.from_numpy(x).double()
    weight = None if problem.weight is None else torch.from_numpy(problem.weight).double()
    bias = None if problem.bias is None else torch.from_numpy(problem.bias).double()
    if isinstance(spec, Conv2d):
        assert weight is not None
        top, left, bottom, right = spec.padding
        padded = functional.pad(data, (left, right, top, bottom))
        y = functional.conv2d(padded, weight, bias, spec.stride, 0, spec.dilation, spec.groups)
    else:
        assert isinstance(spec, Linear) and weight is not None
        y = functional.linear(data, weight, bias)
    if residual is not None:
        y = y + torch.from_numpy(residual).double()
    result: Array = ACTIVATIONS[problem.epilogue.activation.kind](y).numpy()
    return result


def tolerance_of(kernel: Kernel) -> float:
    """The largest relative error allowed: Winograd's transforms lose a digit."""
    return 5e-5 if "winograd" in kernel.name else 1e-5


def relative_error(found: Array, expected: Array) -> float:
    """Largest difference as a share of the expected range; NaN counts as infinite."""
    if not np.isfinite(found).all():
        return float("inf")
    span = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(found - expected).max()) / span


def run_operands(
    op: OpKind,
    spec: Spec,
    operands: Sequence[Array],
    shape: tuple[int, ...],
    activation: Activation | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """What the kernel for AVX-512 of an operator without weights makes of several tensors.

    As `compile_kernel`; its scratch memory starts out as NaN, too.
    """
    problem = Problem(spec, Epilogue(activation=activation or Activation()))
    lowered = choose(op, "avx512", problem).kernel.lower(problem)
    library = compile_kernels([lowered], find_target("avx512"))
    ((function, constants),) = ready_kernels(library.module, library.kernels, library.arrays)
    scratch = [lowered.scratch] if lowered.scratch else []
    own = [np.full(extents, np.nan, np.float32) for extents in scratch]
    own.append(np.full(shape, np.nan if dtype == np.float32 else -1, dtype))
    guarded = [between_guards(array) for array in (*operands, *own)]
    given = list(map(tvm.runtime.from_dlpack, guarded))
    function(*given[: len(operands)], *constants, *given[len(operands) :])
    return guarded[-1]
