"""`project` imposes every pattern, keeps the most magnitude, and touches nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nmcompile.errors import PatternError, WeightError
from nmcompile.sparsity import (
    NM,
    Dense,
    OneByN,
    Pattern,
    Unstructured,
    check,
    energy_kept,
    project,
)
from tests.support.examples import examples

Array = NDArray[Any]

shapes = st.tuples(
    st.integers(1, 40), st.integers(1, 20), st.sampled_from([1, 2, 3]), st.integers(1, 3)
)
seeds = st.integers(0, 2**32 - 1)
patterns: st.SearchStrategy[Pattern] = st.one_of(
    st.integers(1, 32).flatmap(
        lambda m: st.builds(
            NM, st.integers(1, m), st.just(m), st.sampled_from(["ic", "flat", "ohwi"])
        )
    ),
    st.builds(OneByN, st.integers(1, 64)),
    st.just(Unstructured()),
    st.just(Dense()),
)


def nonzero_weight(shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    magnitudes = rng.uniform(0.1, 1, shape) * rng.choice([-1, 1], shape)
    return np.asarray(magnitudes, np.float32)


@given(shapes, seeds, patterns, st.floats(0, 1))
@examples(200)
def test_projection_passes_the_check(
    shape: tuple[int, ...], seed: int, pattern: Pattern, density: float
) -> None:
    assert check(project(nonzero_weight(shape, seed), pattern, density), pattern).ok


@given(shapes, seeds, patterns, st.floats(0, 1), st.floats(0, 1))
@examples(200)
def test_projection_of_a_sparse_weight_passes_the_check_at_its_density(
    shape: tuple[int, ...], seed: int, pattern: Pattern, density: float, before: float
) -> None:
    weight = project(nonzero_weight(shape, seed), Unstructured(), before)
    assert check(project(weight, pattern, density), pattern, density).ok


@given(shapes, seeds, patterns, st.floats(0, 1))
@examples(100)
def test_projection_keeps_values_or_zeroes_them(
    shape: tuple[int, ...], seed: int, pattern: Pattern, density: float
) -> None:
    weight = nonzero_weight(shape, seed)
    before = weight.copy()
    projected = project(weight, pattern, density)
    assert projected.shape == shape
    assert projected.dtype == np.float32
    assert ((projected == weight) | (projected == 0)).all()
    assert np.array_equal(weight, before)
    assert not np.shares_memory(projected, weight)


@given(shapes, seeds, patterns, st.floats(0.01, 1))
@examples(100)
def test_projecting_twice_changes_nothing(
    shape: tuple[int, ...], seed: int, pattern: Pattern, density: float
) -> None:
    once = project(nonzero_weight(shape, seed), pattern, density)
    assert np.array_equal(project(once, pattern, density), once)


@given(
    shapes,
    seeds,
    st.integers(2, 16).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))),
    st.sampled_from(["ic", "flat", "ohwi"]),
    st.booleans(),
)
@examples(80)
def test_nm_keeps_the_largest_of_each_group_and_the_first_of_equals(
    shape: tuple[int, ...], seed: int, nm: tuple[int, int], axis: Any, ties: bool
) -> None:
    n, m = nm
    weight = nonzero_weight(shape, seed)
    if ties:
        weight = np.ceil(weight * 3).astype(np.float32)
    order = weight if axis == "flat" else weight.transpose(0, 2, 3, 1)
    lines = order.reshape(shape[0] if axis == "ic" else 1, -1).copy()
    for line in lines:
        for start in range(0, len(line), m):
            group = line[start : start + m]
            ranked = sorted(range(len(group)), key=lambda k: (-abs(group[k]), k))
            group[ranked[n:]] = 0
    expected = lines.reshape(order.shape)
    if axis != "flat":
        expected = expected.transpose(0, 3, 1, 2)
    assert np.array_equal(project(weight, NM(n, m, axis)), expected)


@given(shapes, seeds, st.integers(1, 33), st.floats(0, 1))
@examples(80)
def test_one_by_n_keeps_the_blocks_of_largest_l1_uniformly(
    shape: tuple[int, ...], seed: int, n: int, density: float
) -> None:
    weight = nonzero_weight(shape, seed)
    outputs, inputs = shape[:2]
    kept = max(round(density * inputs), 1) if density else 0
    expected = np.zeros_like(weight)
    for start in range(0, outputs, n):
        group = slice(start, start + n)
        norms = [np.abs(weight[group, c]).sum(dtype=np.float64) for c in range(inputs)]
        for channel in sorted(range(inputs), key=lambda c: -norms[c])[:kept]:
            expected[group, channel] = weight[group, channel]
    assert np.array_equal(project(weight, OneByN(n), density), expected)


def test_one_by_n_keeps_the_first_of_equal_blocks() -> None:
    projected = project(np.ones((16, 8, 3, 3), np.float32), OneByN(16), 0.25)
    assert np.flatnonzero(projected[0, :, 0, 0]).tolist() == [0, 1]


def test_one_by_n_keeps_one_channel_at_the_smallest_density() -> None:
    projected = project(np.ones((16, 8, 1, 1), np.float32), OneByN(16), 1e-6)
    assert np.count_nonzero(projected) == 16


@given(shapes, seeds, st.floats(0, 1))
@examples(60)
def test_unstructured_keeps_exactly_the_share_asked_for(
    shape: tuple[int, ...], seed: int, density: float
) -> None:
    weight = np.ceil(nonzero_weight(shape, seed) * 5)
    weight[weight == 0] = 1
    projected = project(weight, Unstructured(), density)
    dropped = np.abs(weight[projected == 0])
    assert np.count_nonzero(projected) == round(density * weight.size)
    if dropped.size and projected.any():
        assert dropped.max() <= np.abs(projected[projected != 0]).min()


def test_unstructured_keeps_the_first_of_equals() -> None:
    projected = project(np.ones((2, 4), np.float32), Unstructured(), 0.25)
    assert projected.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 3)])
def test_linear_and_conv1d_keep_their_shape(shape: tuple[int, ...]) -> None:
    projected = project(nonzero_weight(shape, 0), NM(1, 4))
    assert projected.shape == shape
    assert np.count_nonzero(projected) == projected.size // 4


@pytest.mark.parametrize("pattern", [OneByN(16), Unstructured()])
@pytest.mark.parametrize("density", [None, -0.1, 1.5, float("nan")])
def test_missing_or_impossible_density_is_refused(pattern: Pattern, density: float | None) -> None:
    with pytest.raises(PatternError, match=f"{pattern}.*{density}"):
        project(np.ones((16, 4)), pattern, density)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pattern", [NM(2, 4), OneByN(4), Unstructured(), Dense()])
def test_nan_and_infinity_are_refused(pattern: Pattern, value: float) -> None:
    weight = np.ones((4, 4), np.float32)
    weight[1, 2] = value
    with pytest.raises(WeightError, match="1 NaN or infinite"):
        project(weight, pattern, 0.5)


def test_energy_kept_is_the_share_of_squares() -> None:
    weight = np.array([[3.0, -4.0]], np.float32)
    assert energy_kept(weight, project(weight, NM(1, 2))) == pytest.approx(16 / 25)


def test_energy_of_a_zero_weight_is_kept() -> None:
    assert energy_kept(np.zeros((2, 2)), np.zeros((2, 2))) == 1


def test_energy_of_different_shapes_is_refused() -> None:
    with pytest.raises(PatternError, match=r"\(2, 2\).*\(2, 2, 1, 1\)"):
        energy_kept(np.zeros((2, 2)), np.zeros((2, 2, 1, 1)))
