"""Every GPU row and tile variant on the GPU at hand, against float64."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from nmcompile.kernels.catalog import CATALOG, Kernel
from nmcompile.kernels.cuda.build import CudaSource, compile_cubin
from nmcompile.kernels.cuda.launch import run_on_gpu
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.sparse_tensor_core.rows import as_pointwise
from nmcompile.kernels.sparse_tensor_core.tiles import TileConfig
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, GlobalAverage, Linear, Pool2d
from nmcompile.runtime.cuda import open_cuda
from nmcompile.sparsity import NM, Detection, project
from tests.conftest import need_gpu
from tests.support.kernel_runner import activation, output_shape, reference, relative_error
from tests.support.tensor_core_runner import (
    ROWS,
    VARIANTS,
    in_memory,
    make_problem,
    run_row,
    source_of,
    tiles_of_row,
    variant_name,
)

pytestmark = [pytest.mark.gpu, pytest.mark.tool("nvcc")]

TOLERANCE = 2e-2  # of random numbers, relative to the largest
# Tails everywhere, see test_kernels_tensor_core; then a layer that fills a GPU several times.
ODD = Conv2d(2, 40, 9, 10, 40, (3, 2), (1, 2), (1, 0, 2, 1), (1, 2))
LARGE = Conv2d(16, 128, 28, 28, 256, (3, 3), padding=(1, 1, 1, 1))
DEEP = Conv2d(1, 512, 7, 7, 512, (3, 3), padding=(1, 1, 1, 1))
WHOLE = Epilogue(True, True, Activation("relu"))


def row_of(name: str, kind: str) -> Kernel:
    return next(row for row in CATALOG if row.name == f"{name}__{kind}")


def run(kernel: Kernel, problem: Problem, x: Any, residual: Any, config: Any = None) -> Any:
    def launch(source: CudaSource, buffers: Mapping[str, npt.NDArray[Any]]) -> None:
        run_on_gpu(open_cuda(), source, compile_cubin(source.text, kernel.target), buffers)

    return run_row(kernel, problem, x, residual, config, launch=launch)


def assert_exact(kernel: Kernel, conv: Conv2d, epilogue: Epilogue, tile: TileConfig) -> None:
    problem, x, residual = make_problem(kernel, conv, epilogue, seed=tile.channels, whole=True)
    found = run(kernel, problem, x, residual, tile)
    np.testing.assert_array_equal(found, reference(problem, x, residual).astype(np.float16))


@pytest.mark.parametrize("conv", [ODD, replace(LARGE, batch=4)], ids=["odd", "large"])
@pytest.mark.parametrize(("kernel", "tile"), VARIANTS, ids=variant_name)
def test_whole_numbers_are_exact(kernel: Kernel, tile: TileConfig, conv: Conv2d) -> None:
    need_gpu(kernel.target)
    # Sums are exact in float32 and rounded once, as those of the reference.
    assert_exact(kernel, conv, WHOLE, tile)


@pytest.mark.parametrize("kernel", ROWS, ids=variant_name)
def test_split_depth_is_exact(kernel: Kernel) -> None:
    need_gpu(kernel.target)
    for tile in tiles_of_row(kernel):
        assert_exact(kernel, DEEP, replace(WHOLE, in_place=True), replace(tile, splits=3))


@pytest.mark.parametrize("kind", ["relu", "silu", "hard_swish", "clip"])
@pytest.mark.parametrize("kernel", ROWS, ids=variant_name)
def test_random_numbers_agree_with_float64(kernel: Kernel, kind: str) -> None:
    need_gpu(kernel.target)
    epilogue = Epilogue(True, True, activation(kind))
    problem, x, residual = make_problem(kernel, LARGE, epilogue, 3, whole=False)
    found = run(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < TOLERANCE


@pytest.mark.parametrize("seed", range(8))
def test_races_would_show_in_repetitions(seed: int) -> None:
    """The same launch on a busy GPU, again and again, gives the same bits."""
    kind = need_gpu()
    for kernel in [row for row in ROWS if row.target == kind]:
        problem, x, residual = make_problem(kernel, LARGE, WHOLE, seed, whole=False)
        first = run(kernel, problem, x, residual)
        np.testing.assert_array_equal(run(kernel, problem, x, residual), first)


@pytest.mark.parametrize("name", ["linear_f16_two_four", "linear_f16_dense"])
def test_matrix_products_are_exact(name: str) -> None:
    kernel = row_of(name, need_gpu())
    rng = np.random.default_rng(0)
    weight = project(rng.integers(-3, 4, (1000, 512)).astype(np.float32), NM(2, 4))
    detection = Detection(NM(2, 4), (NM(2, 4),), 0.5)
    product = Problem(Linear((64,), 512, 1000), Epilogue(), weight, None, detection, "float16")
    x = rng.integers(-2, 3, (64, 512, 1, 1)).astype(np.float32)
    found = run(kernel, as_pointwise(product), x, None)
    np.testing.assert_array_equal(found[..., 0, 0], x[..., 0, 0] @ weight.T)


@pytest.mark.parametrize(
    "name", ["conv2d_f16_depthwise", "conv2d_f16_grouped_two_four", "conv2d_f16_grouped_dense"]
)
def test_convolutions_with_groups_are_exact(name: str) -> None:
    kernel = row_of(name, need_gpu())
    groups = 48 if "depthwise" in name else 12
    conv = Conv2d(4, 48, 28, 27, 48, (3, 3), (2, 1), (1, 1, 1, 1), groups=groups)
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, (48, conv.group_in, 3, 3)).astype(np.float32)
    weight[:, 2:] = 0  # 2:4 in groups of four channels
    bias = rng.integers(-8, 9, 48).astype(np.float32)
    problem = Problem(conv, WHOLE, weight, bias, None, "float16")
    x = rng.integers(-2, 3, (4, 48, 28, 27)).astype(np.float32)
    residual = rng.integers(-4, 5, output_shape(problem)).astype(np.float32)
    assert kernel.refuse(problem) is None
    found = run(kernel, problem, x, residual)
    np.testing.assert_array_equal(found, reference(problem, x, residual))


def run_reader(kernel: Kernel, problem: Problem, x: Any) -> Any:
    """A kernel without constants; NCHW in and out."""
    source, shape = source_of(kernel, kernel.lower(problem)), output_shape(problem)
    out = in_memory(np.full((*shape, 1, 1)[:4], np.nan, np.float32), fill=np.nan)
    cubin = compile_cubin(source.text, kernel.target)
    run_on_gpu(open_cuda(), source, cubin, {"x": in_memory(x), "out": out})
    return out[..., : shape[1]].transpose(0, 3, 1, 2).reshape(shape)


def test_max_pooling_is_exact() -> None:
    pool = Pool2d("max", 8, 60, 56, 55, 28, 28, (3, 3), (2, 2), (1, 1, 1, 1))
    x = np.random.default_rng(0).standard_normal((8, 60, 56, 55)).astype(np.float16)
    expected = functional.max_pool2d(torch.from_numpy(x.astype(np.float32)), 3, 2, 1).numpy()
    kernel = row_of("pool2d_f16", need_gpu())
    found = run_reader(kernel, Problem(pool, dtype="float16"), x.astype(np.float32))
    np.testing.assert_array_equal(found, expected)


def test_global_average_agrees_with_float64() -> None:
    x = np.random.default_rng(0).standard_normal((16, 100, 7, 7)).astype(np.float16)
    problem = Problem(GlobalAverage(16, 100, 7, 7, (16, 100)), dtype="float16")
    kernel = row_of("global_average_f16", need_gpu())
    found = run_reader(kernel, problem, x.astype(np.float32))
    assert relative_error(found.astype(float), x.astype(float).mean((2, 3))) < 1e-3
