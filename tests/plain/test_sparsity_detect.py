"""`detect` lists what `check` confirms, and prefers what a kernel can use."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nmcompile.errors import PatternError
from nmcompile.sparsity import (
    NM,
    Dense,
    OneByN,
    Pattern,
    Unstructured,
    check,
    detect,
    project,
)
from tests.support.examples import examples

Array = NDArray[Any]

MS = (2, 4, 8, 16, 32)
NM_CANDIDATES = [NM(n, m, axis) for axis in ("ic", "flat") for m in MS for n in MS if n < m] + [
    NM(1, m, axis) for axis in ("ic", "flat") for m in MS
]
ONE_BY_N_CANDIDATES = [OneByN(n) for n in MS]

shapes = st.tuples(
    st.integers(1, 40), st.integers(1, 20), st.sampled_from([1, 2, 3]), st.integers(1, 3)
)
seeds = st.integers(0, 2**32 - 1)


def nonzero_weight(shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    magnitudes = rng.uniform(0.1, 1, shape) * rng.choice([-1, 1], shape)
    return np.asarray(magnitudes, np.float32)


def line_length(shape: tuple[int, ...], pattern: NM) -> int:
    return math.prod(shape[1:] if pattern.axis == "ic" else shape)


@given(shapes, seeds, st.sampled_from(NM_CANDIDATES))
@examples(100)
def test_projected_nm_is_among_those_that_hold(
    shape: tuple[int, ...], seed: int, pattern: NM
) -> None:
    found = detect(project(nonzero_weight(shape, seed), pattern)).holds
    assert (pattern in found) == (pattern.m <= line_length(shape, pattern))


@given(shapes, seeds, st.sampled_from(ONE_BY_N_CANDIDATES), st.floats(0.01, 0.99))
@examples(100)
def test_projected_one_by_n_is_among_those_that_hold(
    shape: tuple[int, ...], seed: int, pattern: OneByN, density: float
) -> None:
    weight = project(nonzero_weight(shape, seed), pattern, density)
    assert (pattern in detect(weight).holds) == bool((weight == 0).any())


@given(shapes, seeds, st.floats(0, 1), st.booleans())
@examples(100)
def test_list_is_what_check_confirms(
    shape: tuple[int, ...], seed: int, density: float, blocks: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight = nonzero_weight(shape, seed)
    if blocks:
        weight = project(weight, OneByN(8), density)
    else:
        weight[rng.random(shape) >= density] = 0
    found = detect(weight)
    # What runs on into the next filter is listed where that makes a difference.
    running = {NM(p.n, p.m, "ohwi") for p in NM_CANDIDATES if math.prod(shape[1:]) % p.m}
    confirmed: set[Pattern] = {
        p
        for p in [*NM_CANDIDATES, *running]
        if check(weight, p).ok and p.m <= line_length(shape, p)
    }
    listed_blocks = {p for p in found.holds if isinstance(p, OneByN)}
    assert {p for p in found.holds if isinstance(p, NM)} == confirmed
    assert listed_blocks <= {p for p in ONE_BY_N_CANDIDATES if check(weight, p).ok}
    assert len(set(found.holds)) == len(found.holds)
    assert found.pattern in found.holds
    assert found.holds[-2:] == (Unstructured(), Dense())
    assert found.density == np.count_nonzero(weight) / weight.size


@pytest.mark.parametrize(
    ("shape", "pattern", "density"),
    [
        ((64, 64, 3, 3), NM(2, 4), None),
        ((64, 64, 3, 3), NM(2, 4, "flat"), None),
        ((64, 64, 1, 1), NM(2, 4), None),
        ((16, 16, 1, 1), NM(2, 4), None),  # in groups of 32, every line would be a short one
        ((64, 20, 1, 1), NM(2, 4), None),
        ((64, 64, 3, 3), NM(4, 8), None),
        ((64, 64, 3, 3), NM(1, 4), None),
        ((64, 64, 3, 3), NM(2, 8), None),
        ((64, 64, 3, 3), NM(1, 16, "flat"), None),
        ((64, 3, 7, 7), NM(2, 4), None),  # 147 weights per output: a short group at the end
        ((64, 3, 7, 7), NM(2, 4, "flat"), None),
        ((64, 1, 3, 3), NM(2, 4), None),  # depthwise
        ((100, 64), NM(2, 4), None),
        ((64, 64, 3, 3), OneByN(16), 0.5),
        ((64, 64, 3, 3), OneByN(16), 0.25),
        ((64, 64, 1, 1), OneByN(16), 0.5),
        ((64, 64, 1, 1), OneByN(4), 0.5),
        ((64, 64, 3, 3), OneByN(32), 0.75),
        ((1000, 64), OneByN(16), 0.5),  # 1000 = 62 * 16 + 8
        ((10, 64), OneByN(16), 0.5),
        ((64, 64, 3, 3), Unstructured(), 0.1),
        ((64, 64, 1, 1), Unstructured(), 0.1),
        ((64, 64, 1, 1), Unstructured(), 0.5),
        ((64, 64, 3, 3), Dense(), None),
        ((32, 1, 3, 3), Dense(), None),
        ((64, 64, 3, 3), Unstructured(), 0.99),
    ],
)
def test_typical_layer_is_seen_as_what_it_was_made(
    shape: tuple[int, ...], pattern: Pattern, density: float | None
) -> None:
    weight = project(nonzero_weight(shape), pattern, density)
    expected = Dense() if density == 0.99 else pattern
    assert detect(weight).pattern == expected


def test_ic_is_preferred_where_both_axes_hold() -> None:
    weight = project(nonzero_weight((64, 64, 1, 1)), NM(2, 4))
    found = detect(weight)
    assert NM(2, 4, "flat") in found.holds
    assert found.pattern == NM(2, 4)


def test_flat_weights_do_not_pass_as_ic() -> None:
    found = detect(project(nonzero_weight((64, 64, 3, 3)), NM(2, 4, "flat")))
    assert NM(2, 4) not in found.holds


def test_groups_longer_than_the_weights_of_an_output_are_not_listed() -> None:
    found = detect(nonzero_weight((16, 16)))
    assert found.holds == (Unstructured(), Dense())


def test_blocks_kept_from_a_sparse_weight_are_listed() -> None:
    sparse = project(nonzero_weight((64, 64, 1, 1)), Unstructured(), 0.3)
    found = detect(project(sparse, OneByN(16), 0.5))
    assert OneByN(16) in found.holds
    assert found.pattern == Unstructured()


def test_stray_zero_does_not_hide_the_blocks() -> None:
    weight = project(nonzero_weight((64, 64, 1, 1)), OneByN(16), 0.5)
    weight[tuple(np.argwhere(weight)[0])] = 0
    assert detect(weight).pattern == OneByN(16)


def test_stray_weight_in_a_dropped_block_does() -> None:
    weight = project(nonzero_weight((64, 64, 1, 1)), OneByN(16), 0.5)
    weight[tuple(np.argwhere(weight == 0)[0])] = 1
    found = detect(weight)
    assert OneByN(16) not in found.holds
    assert found.pattern == Unstructured()


def test_blocks_that_are_sparse_inside_are_not_the_most_useful() -> None:
    weight = project(nonzero_weight((64, 64, 3, 3)), OneByN(16), 0.5)
    weight[np.random.default_rng(1).random(weight.shape) < 0.5] = 0
    found = detect(weight)
    assert OneByN(16) in found.holds
    assert found.pattern == Unstructured()


def test_nm_that_holds_by_accident_is_not_the_most_useful() -> None:
    weight = np.zeros((64, 64, 1, 1), np.float32)
    for i in range(32):  # two in the first group of 32, none in any other
        weight[2 * i, [i, (i + 1 + i % 7) % 32]] = 1
    found = detect(weight)
    assert NM(2, 32) in found.holds
    assert found.pattern == Unstructured()


def test_all_zero_weight_has_every_pattern() -> None:
    found = detect(np.zeros((64, 64, 3, 3), np.float32))
    assert found.density == 0
    assert set(found.holds) >= {*NM_CANDIDATES, *ONE_BY_N_CANDIDATES}
    assert found.pattern == OneByN(32)


def test_single_output_channel_is_no_block() -> None:
    weight = project(nonzero_weight((1, 64, 3, 3)), OneByN(2), 0.5)
    assert not isinstance(detect(weight).pattern, OneByN)


def test_weight_with_another_rank_is_refused() -> None:
    with pytest.raises(PatternError, match="1 dimensions"):
        detect(np.ones(4))


def test_groups_of_a_stem_that_run_on_into_the_next_filter_have_a_name() -> None:
    stem = nonzero_weight((64, 3, 7, 7))  # 147 weights per filter
    found = detect(project(stem, NM(2, 4, "ohwi")))
    assert found.pattern == NM(2, 4, "ohwi")
    assert NM(2, 4) not in found.holds and NM(2, 4, "flat") not in found.holds


def test_groups_that_end_with_each_filter_are_called_by_one_name() -> None:
    found = detect(project(nonzero_weight((64, 16, 3, 3)), NM(2, 4, "ohwi")))
    assert found.pattern == NM(2, 4)
    assert NM(2, 4, "ohwi") not in found.holds
