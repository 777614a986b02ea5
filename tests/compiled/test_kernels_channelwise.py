"""Depthwise convolutions, pooling and averages for GPUs, in the emulator against float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from nmcompile.kernels.catalog import CATALOG, Kernel
from nmcompile.kernels.cuda.build import compile_cubin
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, GlobalAverage, Pool2d
from tests.support.cuda_emulator.run import run_emulated
from tests.support.kernel_runner import activation, output_shape, reference, relative_error
from tests.support.tensor_core_runner import in_memory, run_row, source_of, variant_name

HALF_ULP = 2.0**-11  # of float16, relative: outputs are rounded once
DEPTHWISE, POOL, AVERAGE = (
    next(row for row in CATALOG if row.name == f"{name}__sm_80")
    for name in ("conv2d_f16_depthwise", "pool2d_f16", "global_average_f16")
)
# Channels, rows and columns with tails; strides, paddings and dilations that differ per axis.
CONVS = [
    Conv2d(2, 19, 9, 8, 19, (3, 3), (1, 2), (1, 0, 2, 1), groups=19),
    Conv2d(1, 8, 14, 14, 8, (5, 5), (2, 2), (2, 2, 2, 2), groups=8),
    Conv2d(1, 24, 7, 7, 24, (3, 1), padding=(2, 0, 2, 0), dilation=(2, 1), groups=24),
]
EPILOGUES = [
    Epilogue(),
    Epilogue(True, True, Activation("hard_swish")),
    Epilogue(True, True, Activation("relu"), in_place=True),
]
POOLS = [
    Pool2d("max", 2, 19, 9, 8, 5, 4, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool2d("average", 1, 12, 6, 7, 4, 4, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True),
    Pool2d("average", 1, 12, 6, 7, 4, 4, (3, 3), (2, 2), (1, 1, 1, 1)),
    Pool2d("max", 1, 8, 12, 12, 4, 8, (3, 2), (2, 1), (0, 0, 0, 0), (2, 4)),
]


def halves(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Random numbers that float16 holds."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("conv", CONVS)
def test_depthwise_agrees_with_float64(conv: Conv2d, epilogue: Epilogue) -> None:
    weight = halves((conv.out_channels, 1, *conv.kernel), 0)
    bias = halves((conv.out_channels,), 1) if epilogue.bias else None
    problem = Problem(conv, epilogue, weight, bias, None, "float16")
    x = halves((conv.batch, conv.in_channels, conv.in_height, conv.in_width), 2)
    residual = halves(output_shape(problem), 3) if epilogue.residual else None
    found = run_row(DEPTHWISE, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1.1 * HALF_ULP


def run_reader(kernel: Kernel, problem: Problem, x: Any) -> npt.NDArray[Any]:
    """A kernel without constants; NCHW in and out."""
    lowered = kernel.lower(problem)
    shape = output_shape(problem)
    out = in_memory(np.full((*shape, 1, 1)[:4], np.nan, np.float32), fill=np.nan)
    run_emulated(source_of(kernel, lowered), {"x": in_memory(x), "out": out})
    assert np.isfinite(out).all()
    return out[..., : shape[1]].transpose(0, 3, 1, 2).astype(float).reshape(shape)


def test_maximum_hands_nan_and_infinities_on() -> None:
    x = halves((2, 19, 9, 8), 0)
    drawn = np.random.default_rng(1).random(x.shape)
    x[drawn < 0.1], x[drawn > 0.5], x[1, 3] = np.nan, -np.inf, -np.inf
    problem = Problem(POOLS[0], dtype="float16")
    out = in_memory(np.zeros(output_shape(problem), np.float32))
    run_emulated(source_of(POOL, POOL.lower(problem)), {"x": in_memory(x), "out": out})
    expected = functional.max_pool2d(torch.from_numpy(x), 3, 2, 1).numpy()
    assert np.array_equal(out[..., :19].transpose(0, 3, 1, 2), expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["relu", "clip", "hard_swish", "silu"])
def test_activations_hand_nan_and_infinities_on(kind: str) -> None:
    conv, epilogue = CONVS[0], Epilogue(False, True, activation(kind))
    problem = Problem(conv, epilogue, halves((19, 1, 3, 3), 0), None, None, "float16")
    x, residual = halves((2, 19, 9, 8), 1), halves(output_shape(problem), 2)
    residual.reshape(-1)[:3000:4] = np.nan
    residual.reshape(-1)[1:3000:4] = np.inf
    residual.reshape(-1)[2:3000:4] = -np.inf
    expected = reference(problem, x, residual)
    found = run_row(DEPTHWISE, problem, x, residual)
    assert np.allclose(found, expected, rtol=2 * HALF_ULP, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_agrees_with_torch(pool: Pool2d) -> None:
    x = halves((pool.batch, pool.channels, pool.in_height, pool.in_width), 0)
    data, padding = torch.from_numpy(x).double(), pool.padding[:2]
    if pool.kind == "max":
        expected = functional.max_pool2d(data, pool.kernel, pool.stride, padding, pool.dilation)
    else:
        expected = functional.avg_pool2d(
            data, pool.kernel, pool.stride, padding, True, pool.count_include_pad
        )
    found = run_reader(POOL, Problem(pool, dtype="float16"), x)
    assert relative_error(found, expected.numpy()) < 1.1 * HALF_ULP


@pytest.mark.parametrize("keep", [True, False])
def test_global_average_agrees_with_numpy(keep: bool) -> None:
    x = halves((3, 20, 5, 7), 0)
    shape = (3, 20, 1, 1) if keep else (3, 20)
    problem = Problem(GlobalAverage(3, 20, 5, 7, shape), dtype="float16")
    expected = x.astype(float).mean((2, 3)).reshape(shape)
    assert relative_error(run_reader(AVERAGE, problem, x), expected) < 1.1 * HALF_ULP


@pytest.mark.tool("nvcc")
@pytest.mark.parametrize("kernel", [DEPTHWISE, POOL, AVERAGE], ids=variant_name)
def test_kernel_compiles_without_spills(kernel: Kernel) -> None:
    conv = replace(CONVS[1], kernel=(7, 7), padding=(3, 3, 3, 3))
    problem = {
        DEPTHWISE: Problem(conv, EPILOGUES[1], halves((8, 1, 7, 7), 0), halves((8,), 0)),
        POOL: Problem(POOLS[1]),
        AVERAGE: Problem(GlobalAverage(3, 20, 5, 7, (3, 20))),
    }[kernel]
    cubin = compile_cubin(source_of(kernel, kernel.lower(problem)).text, kernel.target)
    assert all(resources.spilled == 0 for resources in cubin.resources.values())
