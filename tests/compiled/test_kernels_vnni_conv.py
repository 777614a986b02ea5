"""Every integer convolution and matrix product on random shapes, against exact sums.

Sums are compared exactly, through an output of real numbers where they are small enough to be
exact in float32. What becomes of them is compared with the formula of `kernels.integers` in numpy:
LLVM may fuse a product with a sum, or add a residual in another order, so that a value within
rounding of a half may end one step away. The share of such values is bounded.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.errors import TargetError
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, Method
from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.integers import Integers
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.sparsity import NM, Dense, OneByN, Pattern, Unstructured
from tests.support.examples import crossed, examples
from tests.support.integer_problems import (
    assert_finished,
    assert_sums,
    convolutions,
    epilogues,
    make_problem,
)

pytestmark = [pytest.mark.isa("avx512_vnni"), pytest.mark.isa("avx512vbmi")]

TARGET = "avx512_vnni"
METHODS = ("one_by_n", "nm", "dense")


def rows_of(op: str) -> list[Kernel]:
    """The row of each method."""
    rows = {row.name: row for row in CATALOG}
    return [rows[f"{op}_i8_{method}__{TARGET}"] for method in METHODS]


CONVOLUTIONS, PRODUCTS = rows_of("conv2d"), rows_of("linear")
LISTED: list[tuple[Pattern, float | None]] = [
    (NM(2, 4), None), (NM(1, 4), None), (NM(1, 16), None), (NM(3, 7), None),
    (NM(2, 8, "flat"), None), (NM(9, 32), None), (Unstructured(), 0.3), (Unstructured(), 0.05),
    (OneByN(4), 0.5), (Unstructured(), 0.0),
]  # fmt: skip
PATTERNS: dict[str, list[tuple[Pattern, float | None]]] = {
    "nm": LISTED,
    "one_by_n": [(OneByN(n), d) for n in (16, 32, 48, 64) for d in (0.25, 0.6, 0.0)],
    "dense": [(Dense(), None)],
}

TYPICAL: dict[str, Pattern] = {"one_by_n": OneByN(16), "nm": NM(2, 4), "dense": Dense()}


def method_of(kernel: Kernel) -> str:
    return kernel.name.split("_i8_")[1].split("__")[0]


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda kernel: kernel.name)
@examples(5, 80)
@given(conv=convolutions(), seed=st.integers(0, 1 << 16), data=st.data())
def test_sums_are_exact(kernel: Kernel, conv: Conv2d, seed: int, data: st.DataObject) -> None:
    pattern, density = data.draw(st.sampled_from(PATTERNS[method_of(kernel)]))
    problem, x = make_problem(conv, pattern, density, seed)
    configs = kernel.configs(problem)
    chosen = data.draw(st.integers(0, min(len(configs), 10) - 1))
    assert_sums(kernel, problem, x, configs[chosen].config)


GROUPED = [
    # Whole vectors of outputs per group, and groups that share vectors.
    Conv2d(2, 64, 5, 9, 96, (3, 3), (1, 1), (1, 0, 1, 2), groups=2),
    Conv2d(1, 128, 4, 5, 64, (1, 1), (2, 2), groups=4),
    Conv2d(1, 24, 6, 7, 40, (3, 3), (2, 1), (1, 1, 1, 1), (2, 2), groups=4),
    Conv2d(1, 40, 6, 7, 40, (3, 3), (1, 1), (1, 1, 1, 1), groups=40),
]


@pytest.mark.parametrize("conv", GROUPED, ids=str)
def test_sums_of_groups_are_exact(conv: Conv2d) -> None:
    problem, x = make_problem(conv, Dense(), None, 1)
    takers = [row for row in CONVOLUTIONS if row.refuse(problem) is None]
    assert takers
    for kernel in takers:
        assert_sums(kernel, problem, x)


def test_sparse_groups_share_no_channels() -> None:
    conv = Conv2d(1, 128, 5, 6, 96, (3, 3), (1, 1), (1, 1, 1, 1), groups=2)
    for kernel in CONVOLUTIONS:
        problem, x = make_problem(conv, TYPICAL[method_of(kernel)], 0.5, 1)
        assert_sums(kernel, problem, x)


@pytest.mark.parametrize("kernel", PRODUCTS, ids=lambda kernel: kernel.name)
@examples(3, 50)
@given(
    rows=st.sampled_from([(1,), (2, 3), (17,), (50,)]),
    features=st.sampled_from([1, 3, 30, 64, 100, 256, 700]),
    outputs=st.sampled_from([1, 10, 16, 33, 64, 100, 200]),
    data=st.data(),
)
def test_matrix_products_are_exact(
    kernel: Kernel, rows: tuple[int, ...], features: int, outputs: int, data: st.DataObject
) -> None:
    pattern, density = data.draw(st.sampled_from(PATTERNS[method_of(kernel)]))
    problem, x = make_problem(Linear(rows, features, outputs), pattern, density, 3)
    assert_sums(kernel, problem, x)


TILED: list[tuple[Method, int, int]] = [
    *(("picked", vectors, 0) for vectors in (1, 2, 3, 4, 5)),
    *(("dense", vectors, 0) for vectors in (1, 2, 3, 4, 5)),
    *(("gathered", vectors, 16 * vectors) for vectors in (1, 2, 3, 4)),
    # Lists of one group and of several.
    *(("listed", vectors, shared) for vectors, shared in ((1, 16), (1, 48), (2, 32), (3, 48))),
]


# Pixels, rows, tiles, chunks and lines: whole and partial blocks and chunks.
BLOCKS = ((2, 4, 2, 2, 1), (5, 4, 1, 1, 2), (5, 7, 1, 2, 3))


@pytest.mark.parametrize(("tile", "blocks"), crossed(TILED, BLOCKS), ids=str)
def test_any_tile_is_exact(tile: tuple[Method, int, int], blocks: tuple[int, ...]) -> None:
    """Whole and ragged tiles, vectors and outputs."""
    method, vectors, shared = tile
    name = "one_by_n" if shared else "nm" if method == "picked" else "dense"
    kernel = CONVOLUTIONS[METHODS.index(name)]
    pattern: Pattern = OneByN(shared) if shared else NM(2, 4)
    conv = Conv2d(2, 72, 7, 5, 150, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, x = make_problem(conv, pattern, 0.5, 2)
    pixels, rows, tiles, chunks, lines = blocks
    config = LanesConfig(method, pixels, vectors, rows, tiles, chunks, shared, lines)
    assert_sums(kernel, problem, x, config)


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda kernel: kernel.name)
@examples(4, 60)
@given(
    epilogue=epilogues(), outputs=st.sampled_from([16, 32, 40, 72]), seed=st.integers(0, 1 << 16)
)
def test_sums_become_what_the_formula_says(
    kernel: Kernel, epilogue: dict[str, Any], outputs: int, seed: int
) -> None:
    assert_finished(kernel, TYPICAL[method_of(kernel)], epilogue, outputs, seed)


@pytest.mark.parametrize(
    ("channels", "width", "size"),
    [(100, 16, 1), (24, 8, 1), (48, 4, 3), (96, 6, 3), (3, 64, 3)],
)
def test_nothing_around_the_input_is_read(channels: int, width: int, size: int) -> None:
    """Sizes that end with a cache line, and so just before a page that cannot be read."""
    conv = Conv2d(1, channels, 4, width, 48, (size, size))
    for kernel in CONVOLUTIONS:
        problem, x = make_problem(conv, TYPICAL[method_of(kernel)], 0.5, 5)
        assert_sums(kernel, problem, x)


def test_the_fastest_method_is_chosen_by_the_counted_cycles() -> None:
    conv = Conv2d(1, 128, 28, 28, 128, (3, 3), (1, 1), (1, 1, 1, 1))

    def chosen(pattern: Pattern, density: float | None = None) -> str:
        return method_of(
            choose("conv2d", TARGET, make_problem(conv, pattern, density, 0)[0]).kernel
        )

    assert chosen(Dense()) == "dense"
    assert chosen(NM(2, 4)) == "nm"
    assert chosen(Unstructured(), 0.1) == "nm"
    assert chosen(Unstructured(), 0.9) == "dense"
    assert chosen(OneByN(4), 0.25) == "nm"
    assert chosen(OneByN(32), 0.5) == "one_by_n"


def test_scattered_blocks_are_left_to_lists_per_output() -> None:
    conv = Conv2d(1, 64, 7, 7, 64, (1, 1))
    problem, x = make_problem(conv, OneByN(16), 0.5, 0)
    order = tuple(int(place) for place in np.random.default_rng(0).permutation(64))
    assert problem.weight is not None and problem.detection is not None
    weight = np.empty_like(problem.weight)
    weight[list(order)] = problem.weight
    problem = replace(problem, weight=weight, detection=replace(problem.detection, order=order))
    choice = choose("conv2d", TARGET, problem)
    assert method_of(choice.kernel) != "one_by_n"
    assert any("scattered" in reason for reason in choice.refusals.values())
    assert_sums(choice.kernel, problem, x)


def test_sums_that_may_leave_32_bits_are_refused() -> None:
    weight = np.full((16, 70000), 127, np.int8)
    integers = Integers(0, np.ones(16, np.float32))
    problem = Problem(Linear((1,), 70000, 16), weight=weight, dtype="int8", integers=integers)
    with pytest.raises(TargetError, match="2266950000, beyond the 32 bits"):
        choose("linear", TARGET, problem)
