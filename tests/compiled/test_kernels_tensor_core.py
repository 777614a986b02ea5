"""Every tensor-core row and tile variant in the emulator, against float64."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.errors import TargetError, WeightError
from nmcompile.kernels.catalog import Kernel, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.sparse_tensor_core.gpus import GPUS, Gpu, find_gpu
from nmcompile.kernels.sparse_tensor_core.tiles import Gemm, TileConfig, tiles_of
from nmcompile.kernels.sparse_tensor_core.tiling import fits, split_counts
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, Linear
from nmcompile.sparsity import NM, Dense, Detection, OneByN, Pattern, project
from tests.support.examples import examples
from tests.support.kernel_runner import ACTIVATIONS, activation, reference, relative_error
from tests.support.tensor_core_runner import (
    ROWS,
    VARIANTS,
    geometries,
    make_problem,
    method_of,
    run_row,
    source_of,
    tiles_of_row,
    usual_variants,
    variant_name,
)

SPARSE, DENSE, WGMMA = (
    next(row for row in ROWS if method_of(row) == method) for method in ("sparse", "dense", "wgmma")
)
HALF_ULP = 2.0**-11  # of float16, relative: outputs are rounded once

# Tails everywhere: channels that end within a slice, a window across slices, pixels and output
# channels that end within a tile.
ODD = Conv2d(2, 40, 9, 10, 40, (3, 2), (1, 2), (1, 0, 2, 1), (1, 2))
# One slice of the depth, fewer than there are stages.
SHORT = Conv2d(1, 24, 6, 5, 24, (1, 1))
LARGE = Conv2d(64, 128, 28, 28, 128, (3, 3), padding=(1, 1, 1, 1))
DEEP = Conv2d(1, 512, 7, 7, 512, (3, 3), padding=(1, 1, 1, 1))


def assert_exact(kernel: Kernel, conv: Conv2d, epilogue: Epilogue, tile: TileConfig) -> None:
    problem, x, residual = make_problem(kernel, conv, epilogue, seed=tile.channels, whole=True)
    found = run_row(kernel, problem, x, residual, tile)
    assert (found == reference(problem, x, residual).astype(np.float16)).all()


@pytest.mark.parametrize(("kernel", "tile"), usual_variants(), ids=variant_name)
def test_whole_numbers_are_exact(kernel: Kernel, tile: TileConfig) -> None:
    assert_exact(kernel, ODD, Epilogue(True, True, Activation("relu")), tile)


@pytest.mark.parametrize(
    ("kernel", "tile"), usual_variants(lambda tile: tile.stages), ids=variant_name
)
def test_depth_shorter_than_the_stages(kernel: Kernel, tile: TileConfig) -> None:
    assert Gemm(SHORT, tile, method_of(kernel)).slices < tile.stages
    assert_exact(kernel, SHORT, Epilogue(), tile)


@pytest.mark.parametrize("kernel", [SPARSE, DENSE, WGMMA], ids=variant_name)
def test_split_depth(kernel: Kernel) -> None:
    # 8 slices in 3 parts: the last one has fewer.
    conv = Conv2d(1, 128, 7, 7, 72, (2, 2))
    for tile in tiles_of_row(kernel)[-2:]:
        epilogue = Epilogue(True, True, Activation("relu"), in_place=True)
        assert_exact(kernel, conv, epilogue, replace(tile, splits=3))


@pytest.mark.parametrize(
    ("kernel", "conv"),
    [
        (DENSE, Conv2d(1, 3, 20, 18, 64, (7, 7), (2, 2), (3, 3, 3, 3))),  # a stem
        (SPARSE, Conv2d(2, 128, 14, 14, 64, (1, 1), (2, 2))),  # a shortcut
        (WGMMA, Conv2d(1, 64, 14, 14, 96, (3, 3), (2, 2), (0, 0, 1, 1))),  # "same" of TensorFlow
        (DENSE, Conv2d(1, 3, 48, 32, 40, (16, 16), (16, 16))),  # patches
    ],
)
def test_layers_of_networks(kernel: Kernel, conv: Conv2d) -> None:
    problem, _, _ = make_problem(kernel, conv, Epilogue(), 0, whole=True)
    config = kernel.configs(problem)[0].config
    assert_exact(kernel, conv, Epilogue(True, False, Activation("relu")), config)


@pytest.mark.parametrize("kernel", [SPARSE, DENSE, WGMMA], ids=variant_name)
@examples(4, 50)
@given(data=st.data())
def test_random_problems_agree_with_float64(kernel: Kernel, data: st.DataObject) -> None:
    conv = data.draw(geometries())
    residual = data.draw(st.booleans())
    kind = data.draw(st.sampled_from(["none", "relu"]))
    in_place = residual and data.draw(st.booleans())
    epilogue = Epilogue(data.draw(st.booleans()), residual, activation(kind), in_place)
    seed = data.draw(st.integers(0, 1000))
    problem, x, added = make_problem(kernel, conv, epilogue, seed, whole=False)
    assert kernel.refuse(problem) is None
    config = data.draw(st.sampled_from([c.config for c in kernel.configs(problem)]))
    found = run_row(kernel, problem, x, added, config)
    assert relative_error(found, reference(problem, x, added)) < 1.1 * HALF_ULP


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_activations_agree_with_float64(kind: str) -> None:
    epilogue = Epilogue(True, True, activation(kind))
    problem, x, residual = make_problem(SPARSE, SHORT, epilogue, 0, whole=False)
    assert residual is not None
    # Far beyond where the activations saturate, on both sides.
    residual = (residual * 8).astype(np.float16).astype(np.float32)
    found = run_row(SPARSE, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1.1 * HALF_ULP


@pytest.mark.parametrize(("kernel", "tile"), VARIANTS, ids=variant_name)
def test_resident_blocks_fit_the_gpu(kernel: Kernel, tile: TileConfig) -> None:
    gpu = find_gpu(kernel.target)
    gemm = Gemm(ODD, tile, method_of(kernel))
    assert fits(gemm, gpu) and gemm.shared_bytes <= gpu.block_bytes


@pytest.mark.parametrize("conv", [LARGE, DEEP, replace(LARGE, kernel=(1, 1))], ids=str)
@pytest.mark.parametrize("kernel", ROWS, ids=variant_name)
def test_what_a_row_proposes_fits_a_thread_block(kernel: Kernel, conv: Conv2d) -> None:
    problem, _, _ = make_problem(kernel, conv, Epilogue(), 0, whole=True)
    gpu, candidates = find_gpu(kernel.target), kernel.configs(problem)
    assert len(candidates) > 5
    for candidate in candidates:
        gemm = Gemm(conv, candidate.config, method_of(kernel))
        assert gemm.shared_bytes <= gpu.block_bytes
        assert candidate.config.threads * candidate.config.resident <= gpu.threads


@pytest.mark.parametrize("method", ["sparse", "dense"])
def test_ada_runs_the_code_of_ampere(method: str) -> None:
    """What is exact for sm_86 is so for sm_89, and runs there: see `gpu.KINDS`."""
    rows = [row for row in ROWS if row.target in ("sm_86", "sm_89") and method_of(row) == method]
    problem, _, _ = make_problem(rows[0], ODD, Epilogue(), 0, whole=True)
    first, second = (tiles_of_row(row) for row in rows)
    assert first == second
    for tile in first:
        ampere, ada = (source_of(row, row.lower(problem, tile)) for row in rows)
        assert ampere == ada


@given(conv=geometries(), data=st.data(), gpu=st.sampled_from(GPUS))
def test_no_split_is_empty(conv: Conv2d, data: st.DataObject, gpu: Gpu) -> None:
    tile = data.draw(st.sampled_from(tiles_of("sparse", gpu)))
    for splits in split_counts(Gemm(conv, tile, "sparse"), gpu):
        gemm = Gemm(conv, replace(tile, splits=splits), "sparse")
        assert (splits - 1) * gemm.split_slices < gemm.slices <= splits * gemm.split_slices


def test_small_batches_split_the_depth() -> None:
    problem, _, _ = make_problem(SPARSE, DEEP, Epilogue(), 0, whole=True)
    assert SPARSE.configs(problem)[0].config.splits > 1


# ---- Which problems a row takes


def problem_of(conv: Conv2d, pattern: Pattern) -> Problem:
    rng = np.random.default_rng(0)
    shape = (conv.out_channels, conv.group_in, *conv.kernel)
    weight = project(rng.standard_normal(shape, dtype=np.float32), pattern, 0.5)
    return Problem(conv, Epilogue(), weight, None, Detection(pattern, (pattern,), 0.5), "float16")


@pytest.mark.parametrize("target", [gpu.arch for gpu in GPUS])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(2, 8), NM(1, 8), NM(1, 16)], ids=str)
def test_two_in_four_runs_sparse(target: str, pattern: Pattern) -> None:
    choice = choose("conv2d", target, problem_of(LARGE, pattern))
    assert choice.kernel.sparse and choice.kernel.target == target


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (NM(4, 8), "4:8 is not 2:4 along the input channels"),
        (NM(2, 4, "flat"), "2:4@flat is not 2:4 .*: its groups do not run along"),
        (OneByN(16), "1x16 is not 2:4 along the input channels"),
        (Dense(), "the weight is dense; `nmc enforce` with 2:4"),
    ],
    ids=str,
)
def test_other_patterns_run_dense_with_a_reason(pattern: Pattern, reason: str) -> None:
    choice = choose("conv2d", "sm_80", problem_of(LARGE, pattern))
    assert not choice.kernel.sparse
    assert re.search(reason, choice.reason)


def test_few_input_channels_run_dense() -> None:
    choice = choose("conv2d", "sm_80", problem_of(replace(LARGE, in_channels=8), NM(2, 4)))
    assert not choice.kernel.sparse and "8 input channels" in choice.reason


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (replace(LARGE, groups=128), "not depthwise"),
        (replace(LARGE, groups=4), "without groups, not 4"),
        (replace(LARGE, kernel=(17, 1)), "window of 17x1"),
        (replace(LARGE, batch=30_000), "31 bits; reduce the batch"),
    ],
)
def test_what_a_tensor_core_cannot_run_is_refused(conv: Conv2d, reason: str) -> None:
    problem = problem_of(conv, NM(2, 4))
    for row in ROWS:
        assert reason in str(row.refuse(problem))


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (replace(LARGE, kernel=(17, 1)), "window of 17x1"),
        (replace(LARGE, batch=30_000), "31 bits; reduce the batch"),
        (replace(LARGE, groups=128, batch=30_000), "31 bits; reduce the batch"),
        (replace(LARGE, groups=4, kernel=(1, 17)), "window of 1x17"),
    ],
)
def test_what_no_row_runs_is_an_error_with_the_reason(conv: Conv2d, reason: str) -> None:
    with pytest.raises(TargetError, match=f"no kernel for conv2d on float16: .*{reason}"):
        choose("conv2d", "sm_80", problem_of(conv, NM(2, 4)))


def test_other_convolutions_and_matrix_products_have_kernels() -> None:
    depthwise = choose("conv2d", "sm_80", problem_of(replace(LARGE, groups=128), NM(2, 4)))
    assert depthwise.kernel.name == "conv2d_f16_depthwise__sm_80"
    grouped = choose("conv2d", "sm_90a", problem_of(replace(LARGE, groups=4), NM(2, 4)))
    assert grouped.kernel.name == "conv2d_f16_grouped_two_four__sm_90a"
    weight = np.random.default_rng(0).standard_normal((1000, 2048), dtype=np.float32)
    linear = Problem(Linear((64,), 2048, 1000), weight=project(weight, NM(2, 4)), dtype="float16")
    assert choose("linear", "sm_80", linear).kernel.name == "linear_f16_two_four__sm_80"


def test_a_weight_beyond_float16_is_an_error() -> None:
    problem = problem_of(SHORT, NM(2, 4))
    assert problem.weight is not None
    problem.weight[0, 0] = 1e6
    with pytest.raises(WeightError, match=r"below 65504 \(float16\), found 1e\+06"):
        DENSE.lower(problem)
