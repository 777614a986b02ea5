"""The emulator notices what would go wrong on a GPU: faults are planted in a kernel's CUDA."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nmcompile.kernels.cuda.build import CudaSource
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.sparse_tensor_core.gpus import find_gpu
from nmcompile.kernels.sparse_tensor_core.tiles import tiles_of
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from tests.support.cuda_emulator.run import Array, EmulationError, run_emulated
from tests.support.kernel_runner import reference
from tests.support.tensor_core_runner import ROWS, make_problem, run_row, source_of

KERNEL = next(row for row in ROWS if row.sparse)
A100, H100 = find_gpu("sm_80"), find_gpu("sm_90a")
TILE = replace(next(tile for tile in tiles_of("sparse", A100) if tile.pixels == 32), stages=3)
# A tail of pixels; four slices of the depth in three stages, so that the last one lies where the
# sums will be.
CONV = Conv2d(1, 64, 7, 7, 64, (2, 2), padding=(1, 0, 0, 1))
EPILOGUE = Epilogue(True, True, Activation("relu"))
BARRIER = "  tvm_builtin_cuda_cta_sync();\n"


@pytest.fixture(scope="module")
def problem() -> tuple[Problem, Array, Array | None]:
    return make_problem(KERNEL, CONV, EPILOGUE, 0, whole=True)


@pytest.fixture(scope="module")
def source(problem: tuple[Problem, Array, Array | None]) -> CudaSource:
    return source_of(KERNEL, KERNEL.lower(problem[0], TILE))


def nth(old: str, new: str, number: int) -> Callable[[str], str]:
    """Replace one occurrence."""

    def edit(text: str) -> str:
        parts = text.split(old)
        return old.join(parts[: number + 1]) + new + old.join(parts[number + 1 :])

    return edit


def run_with(
    source: CudaSource, problem: tuple[Problem, Array, Array | None], edit: Callable[[str], str]
) -> bool:
    """Whether the output is right."""
    text = edit(source.text)
    if text == source.text:
        pytest.fail("no fault was planted")
    found = run_row(KERNEL, *problem, config=TILE, source=replace(source, text=text))
    return bool((found == reference(*problem).astype(np.float16)).all())


def test_the_kernel_itself_is_right(
    source: CudaSource, problem: tuple[Problem, Array, Array | None]
) -> None:
    assert run_with(source, problem, lambda text: text + "\n")


@pytest.mark.parametrize(("selector", "wrong"), [(0, 1), (1, 0)])
def test_wrong_selector(
    source: CudaSource,
    problem: tuple[Problem, Array, Array | None],
    selector: int,
    wrong: int,
) -> None:
    assert not run_with(source, problem, nth(f", %16, {selector};", f", %16, {wrong};", 0))


def test_late_wait(source: CudaSource, problem: tuple[Problem, Array, Array | None]) -> None:
    late = nth("cp.async.wait_group 1;", "cp.async.wait_group 2;", 0)
    with pytest.raises(EmulationError, match="while a copy to it is in flight"):
        run_with(source, problem, late)


def test_missing_commit(source: CudaSource, problem: tuple[Problem, Array, Array | None]) -> None:
    call = "  tvm_builtin_ptx_cp_async_commit_group_async_commit_group();\n"
    with pytest.raises(EmulationError, match="while a copy to it is in flight"):
        run_with(source, problem, nth(call, "", 0))


# In the main loop, before the sums overwrite the stages, and before they are read.
@pytest.mark.parametrize("number", [0, 1, 2])
def test_missing_barrier(
    source: CudaSource, problem: tuple[Problem, Array, Array | None], number: int
) -> None:
    race = "behind the same barrier|in flight|nobody has written"
    with pytest.raises(EmulationError, match=race):
        run_with(source, problem, nth(BARRIER, "", number))


def test_barrier_that_not_all_threads_reach(
    source: CudaSource, problem: tuple[Problem, Array, Array | None]
) -> None:
    some = nth(BARRIER, f"  if (((int)threadIdx.x) < 32) {BARRIER}", 1)
    with pytest.raises(EmulationError, match=r"never come|behind the same barrier"):
        run_with(source, problem, some)


def test_warp_that_diverges(
    source: CudaSource, problem: tuple[Problem, Array, Array | None]
) -> None:
    def diverge(text: str) -> str:
        start = text.index("launch_bounds", text.index("launch_bounds") + 1)
        call = re.compile(r"tvm_builtin_ptx_ldmatrix\w+\(")
        match = call.search(text, start)
        assert match is not None
        guard = "if (((int)threadIdx.x) % 32 != 5) "
        return text[: match.start()] + guard + text[match.start() :]

    with pytest.raises(EmulationError, match=r"its warp is at|never come"):
        run_with(source, problem, diverge)


def test_illegal_metadata(problem: tuple[Problem, Array, Array | None], source: CudaSource) -> None:
    lowered = KERNEL.lower(problem[0], TILE)
    block = lowered.arrays["weights"].reshape(-1, 64 * 64 * 9 // 16 // 2)
    block[0, 64 * 64 // 4] = 0  # the first word behind the kept elements
    buffers = buffers_of(lowered.arrays)
    with pytest.raises(EmulationError, match="illegal metadata: positions 0, 0"):
        run_emulated(source, buffers)


def test_access_out_of_bounds(
    problem: tuple[Problem, Array, Array | None], source: CudaSource
) -> None:
    buffers = buffers_of(KERNEL.lower(problem[0], TILE).arrays)
    buffers["x"] = buffers["x"][:, :6]
    with pytest.raises(EmulationError, match="bytes from the start of x, which has 5376"):
        run_emulated(source, buffers)


def test_bank_permutation_that_does_not_match(
    source: CudaSource, problem: tuple[Problem, Array, Array | None]
) -> None:
    def straight(text: str) -> str:
        return re.sub(r"\^ \(\(\(int\)threadIdx\.x\) & 7\)\) \* 4", "^ 0) * 4", text, count=1)

    assert not run_with(source, problem, straight)


def buffers_of(arrays: object) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    assert isinstance(arrays, dict)
    shape = (1, 7, 7, 64)
    names = ("x", "residual", "out")
    return {**arrays, **{name: rng.standard_normal(shape).astype(np.float16) for name in names}}


# ---- wgmma

GROUP_KERNEL = next(row for row in ROWS if "wgmma" in row.name)
GROUP_TILE = replace(tiles_of("wgmma", H100)[-1], stages=3)


def run_group(problem: tuple[Problem, Array, Array | None], edit: Callable[[str], str]) -> bool:
    """As `run_with`."""
    source = source_of(GROUP_KERNEL, GROUP_KERNEL.lower(problem[0], GROUP_TILE))
    text = edit(source.text)
    if text == source.text:
        pytest.fail("no fault was planted")
    source = replace(source, text=text)
    found = run_row(GROUP_KERNEL, *problem, config=GROUP_TILE, source=source)
    return bool((found == reference(*problem).astype(np.float16)).all())


def without(call: str) -> Callable[[str], str]:
    """Drop the first call of a wrapper function."""

    def edit(text: str) -> str:
        return re.sub(rf"\n *tvm_builtin_ptx_{call}\w*\(\);", "", text, count=1)

    return edit


def test_group_kernel_itself_is_right(problem: tuple[Problem, Array, Array | None]) -> None:
    assert run_group(problem, lambda text: text + "\n")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("fence_proxy", "wgmma reads shared byte .* without a proxy fence"),
        ("wgmma_fence", "issues wgmma without wgmma.fence"),
        ("cp_async_wait_group", "in flight"),
    ],
)
def test_group_kernel_without_a_fence(
    problem: tuple[Problem, Array, Array | None], call: str, message: str
) -> None:
    with pytest.raises(EmulationError, match=message):
        run_group(problem, without(call))


@pytest.mark.parametrize("call", ["wgmma_commit_group", "wgmma_wait_group"])
def test_group_kernel_that_does_not_wait(
    problem: tuple[Problem, Array, Array | None], call: str
) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        assert run_group(problem, without(call))


def test_group_kernel_with_the_wrong_selector(
    problem: tuple[Problem, Array, Array | None],
) -> None:
    assert not run_group(problem, nth(", 1, 1, 1, 1, 0;", ", 0, 1, 1, 1, 0;", 0))


def test_group_kernel_with_the_wrong_stride(problem: tuple[Problem, Array, Array | None]) -> None:
    with pytest.raises((EmulationError, AssertionError)):
        assert run_group(problem, nth("64ull << 32", "32ull << 32", 0))
