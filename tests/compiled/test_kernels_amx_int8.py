"""Integer convolutions on tiles, against exact sums, on the tile unit and on its twin."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.kernels.avx512_amx.tiles.config import TilesConfig
from nmcompile.kernels.catalog import choose
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
from tests.support.tile_rows import TARGET, UNITS, row_on

PATTERNS: dict[str, list[tuple[Pattern, float | None]]] = {
    "one_by_n": [(OneByN(n), d) for n in (16, 32, 48, 64) for d in (0.1, 0.5, 0.9, 0.0)],
    "dense": [(Dense(), None), (NM(2, 4), None), (Unstructured(), 0.3)],
}
METHODS = tuple(PATTERNS)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", METHODS)
@examples(2, 30)
@given(conv=convolutions(), seed=st.integers(0, 1 << 16), data=st.data())
def test_sums_are_exact(
    unit: str, method: str, conv: Conv2d, seed: int, data: st.DataObject
) -> None:
    kernel = row_on(unit, f"conv2d_i8_{method}")
    pattern, density = data.draw(st.sampled_from(PATTERNS[method]))
    problem, x = make_problem(conv, pattern, density, seed)
    configs = kernel.configs(problem)
    chosen = data.draw(st.integers(0, len(configs) - 1))
    assert_sums(kernel, problem, x, configs[chosen].config)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", METHODS)
@examples(2)
@given(
    rows=st.sampled_from([(1,), (2, 3), (17,), (50,)]),
    features=st.sampled_from([1, 3, 30, 64, 100, 256, 700]),
    outputs=st.sampled_from([1, 10, 16, 33, 64, 100, 200]),
    data=st.data(),
)
def test_matrix_products_are_exact(
    unit: str,
    method: str,
    rows: tuple[int, ...],
    features: int,
    outputs: int,
    data: st.DataObject,
) -> None:
    kernel = row_on(unit, f"linear_i8_{method}")
    pattern, density = data.draw(st.sampled_from(PATTERNS[method]))
    problem, x = make_problem(Linear(rows, features, outputs), pattern, density, 3)
    assert_sums(kernel, problem, x)


SHAPES = [(a, v) for a in (1, 2, 3, 4) for v in (1, 2, 3, 4) if a * v <= 4]
# Pixels, rows, tiles and chunks: whole and partial blocks and chunks.
BLOCKS = ((3, 4, 3, 2), (5, 2, 2, 1), (9, 6, 1, 1), (4, 1, 2, 1))
WAYS = [(method, *blocks) for method in METHODS for blocks in BLOCKS]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("shape", "way"), crossed(SHAPES, WAYS), ids=str)
def test_any_tile_is_exact(
    unit: str, shape: tuple[int, int], way: tuple[str, int, int, int, int]
) -> None:
    """Whole and ragged tiles, vectors and outputs."""
    across, vectors = shape
    method, pixels, rows, tiles, chunks = way
    conv = Conv2d(2, 72, 6, 9, 150, (3, 3), (1, 1), (1, 1, 1, 1))
    kernel = row_on(unit, f"conv2d_i8_{method}")
    if method == "dense":
        problem, x = make_problem(conv, Dense(), None, 2)
        config = TilesConfig("dense", pixels, across, vectors, rows, tiles, chunks, 0)
    else:
        shared = 16 * vectors
        problem, x = make_problem(conv, OneByN(shared), 0.5, 2)
        config = TilesConfig("gathered", pixels, across, vectors, rows, tiles, chunks, shared)
    assert_sums(kernel, problem, x, config)


STRIDED = [
    Conv2d(2, 64, 9, 9, 48, (1, 1), (2, 2)),
    Conv2d(1, 70, 8, 13, 100, (1, 1), (2, 3)),
    Conv2d(1, 24, 5, 5, 16, (1, 1), (1, 1), (1, 0, 1, 0)),
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("conv", STRIDED, ids=str)
def test_pointwise_with_strides_or_borders(unit: str, conv: Conv2d) -> None:
    for method in METHODS:
        pattern, density = PATTERNS[method][0]
        problem, x = make_problem(conv, pattern, density, 1)
        assert_sums(row_on(unit, f"conv2d_i8_{method}"), problem, x)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", METHODS)
@examples(2, 30)
@given(
    epilogue=epilogues(), outputs=st.sampled_from([16, 32, 40, 72]), seed=st.integers(0, 1 << 16)
)
def test_sums_become_what_the_formula_says(
    unit: str, method: str, epilogue: dict[str, Any], outputs: int, seed: int
) -> None:
    pattern: Pattern = OneByN(16) if method == "one_by_n" else Dense()
    assert_finished(row_on(unit, f"conv2d_i8_{method}"), pattern, epilogue, outputs, seed)


@pytest.mark.parametrize(
    ("channels", "width", "size"),
    [(100, 16, 1), (24, 8, 1), (48, 4, 3), (96, 6, 3), (3, 64, 3)],
)
def test_nothing_around_the_input_is_read(channels: int, width: int, size: int) -> None:
    """Sizes that end with a cache line, and so just before a page that cannot be read."""
    conv = Conv2d(1, channels, 4, width, 48, (size, size))
    for method, pattern in (("one_by_n", OneByN(16)), ("dense", Dense())):
        problem, x = make_problem(conv, pattern, 0.5 if method == "one_by_n" else None, 5)
        assert_sums(row_on("hardware", f"conv2d_i8_{method}"), problem, x)


def test_the_fastest_kernel_is_chosen_by_the_counted_cycles() -> None:
    """Lists pay where a window reads what they gather many times, and where hardly any is left."""

    def chosen(conv: Conv2d, pattern: Pattern, density: float | None = None) -> str:
        return choose("conv2d", TARGET, make_problem(conv, pattern, density, 1)[0]).kernel.name

    window = Conv2d(1, 256, 14, 14, 256, (3, 3), (1, 1), (1, 1, 1, 1))
    point = Conv2d(1, 256, 28, 28, 128, (1, 1))
    assert chosen(window, OneByN(32), 0.25) == "conv2d_i8_one_by_n__avx512_amx"
    assert chosen(point, OneByN(16), 0.75) == "conv2d_i8_dense__avx512_amx"
    assert chosen(window, NM(2, 4)) == "conv2d_i8_dense__avx512_amx"
    assert chosen(replace(window, groups=256), Dense()) == "conv2d_i8_depthwise__avx512_vnni"
    assert chosen(replace(window, groups=4), Dense()).endswith("__avx512_vnni")


def test_why_n_m_is_multiplied_densely() -> None:
    conv = Conv2d(1, 256, 14, 14, 256, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, _ = make_problem(conv, NM(2, 4), None, 1)
    reason = choose("conv2d", TARGET, problem).reason
    assert "2:4" in reason and "16 outputs" in reason
