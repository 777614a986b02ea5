"""`check` against loops that follow the definitions word by word."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nmcompile.errors import PatternError, WeightError
from nmcompile.sparsity import (
    NM,
    CheckResult,
    Dense,
    OneByN,
    Pattern,
    Unstructured,
    check,
    project,
    stored_share,
)
from nmcompile.sparsity.scattered import scattered_order
from tests.support.examples import examples

Array = NDArray[Any]
Index = tuple[int, int, int, int]


@st.composite
def weights(draw: st.DrawFn) -> Array:
    shape = draw(
        st.tuples(
            st.integers(1, 20), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.integers(1, 3)
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = np.where(rng.random(shape) < draw(st.floats(0, 1)), rng.standard_normal(shape), 0)
    if draw(st.booleans()):  # blocks, so that 1xN holds now and then
        weight *= np.repeat(rng.random((-(-shape[0] // 4), shape[1], 1, 1)) < 0.6, 4, 0)[: shape[0]]
    if draw(st.booleans()):
        weight[rng.random(shape[0]) < 0.3] = 0
    return weight.astype(np.float32)


def nm_groups(shape: Index, pattern: NM) -> list[list[Index]]:
    o, i, kh, kw = shape
    if pattern.axis != "flat":
        lines = [
            [(a, b, c, d) for c in range(kh) for d in range(kw) for b in range(i)] for a in range(o)
        ]
        if pattern.axis == "ohwi":
            lines = [[index for line in lines for index in line]]
    else:
        lines = [
            [(a, b, c, d) for a in range(o) for b in range(i) for c in range(kh) for d in range(kw)]
        ]
    m = pattern.m
    return [line[s : s + m] for line in lines for s in range(0, len(line), m)]


def naive_nm(weight: Array, pattern: NM) -> CheckResult:
    o, i, kh, kw = weight.shape
    broken = [
        group[0]
        for group in nm_groups((o, i, kh, kw), pattern)
        if sum(weight[index] != 0 for index in group) > pattern.n
    ]
    return CheckResult(not broken, len(broken), broken[0] if broken else None)


def naive_one_by_n(weight: Array, n: int) -> CheckResult:
    outputs, inputs = weight.shape[:2]
    broken = []
    groups = [group for s in range(0, outputs, n) if (group := weight[s : s + n]).any()]
    kept = [sum(bool(group[:, c].any()) for c in range(inputs)) for group in groups]
    most = max(kept, default=0)
    if most < inputs and most <= round(0.75 * inputs) and kept.count(most) > len(kept) / 2:
        return CheckResult(True, 0, None)
    for start in range(0, outputs, n):
        for channel in range(inputs):
            keep = drop = 0
            for out in range(start, min(start + n, outputs)):
                if not weight[out].any():
                    continue
                if weight[out, channel].any():
                    keep += 1
                else:
                    drop += 1
            if keep and drop >= keep:
                broken.append((start, channel, 0, 0))
    return CheckResult(not broken, len(broken), broken[0] if broken else None)


@given(weights(), st.integers(1, 32), st.integers(1, 32), st.sampled_from(["ic", "flat", "ohwi"]))
@examples(150)
def test_nm_agrees_with_naive_loops(weight: Array, a: int, b: int, axis: Any) -> None:
    pattern = NM(min(a, b), max(a, b), axis)
    assert check(weight, pattern) == naive_nm(weight, pattern)


@given(weights(), st.integers(1, 33))
@examples(150)
def test_one_by_n_agrees_with_naive_loops(weight: Array, n: int) -> None:
    order = scattered_order(weight != 0, n)
    naive = naive_one_by_n(weight, n)
    if not naive.ok and order is not None:
        naive = naive_one_by_n(weight[order], n)
    assert check(weight, OneByN(n)) == naive


@given(weights(), st.integers(1, 33))
@examples(50)
def test_stored_share_counts_the_weights_of_blocks_that_are_not_zero(weight: Array, n: int) -> None:
    order = scattered_order(weight != 0, n)
    shares = []
    for ordered in [weight] if order is None else [weight, weight[order]]:
        stored = np.zeros(weight.shape, bool)
        for start in range(0, weight.shape[0], n):
            kept = (ordered[start : start + n] != 0).any((0, 2, 3))
            stored[start : start + n] = kept[:, None, None]
        shares.append(stored.mean())
    assert stored_share(weight, OneByN(n)) == pytest.approx(min(shares))


@given(weights())
@examples(20)
def test_dense_and_unstructured_hold_for_every_weight(weight: Array) -> None:
    assert check(weight, Dense()).ok
    assert check(weight, Unstructured()).ok


def test_ic_groups_run_along_the_input_channel_at_one_kernel_position() -> None:
    weight = np.zeros((1, 4, 1, 2), np.float32)
    weight[0, :3, 0, 1] = 1
    assert check(weight, NM(2, 4)) == CheckResult(False, 1, (0, 0, 0, 1))
    assert check(weight, NM(2, 4, "flat")).ok


def test_ic_groups_run_on_over_kernel_positions() -> None:
    weight = np.zeros((1, 3, 1, 4), np.float32)
    weight[0, :, 0, 1] = 1  # HWI positions 3, 4, 5: one in the first group, two in the second
    weight[0, 0, 0, 2] = 1  # position 6
    assert check(weight, NM(2, 4)) == CheckResult(False, 1, (0, 1, 0, 1))


def test_ic_groups_do_not_cross_output_channels() -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[0, 1:], weight[1, 0] = 1, 1
    assert check(weight, NM(2, 4)).ok
    assert not check(weight, NM(2, 4, "flat")).ok


def test_stray_weight_in_a_dropped_block_is_a_violation() -> None:
    weight = np.ones((32, 8, 3, 3), np.float32)
    weight[16:, 5] = 0
    weight[20, 5, 1, 1] = 1e-30
    assert check(weight, OneByN(16)) == CheckResult(False, 1, (16, 5, 0, 0))


def test_stray_weight_in_one_of_several_uniform_groups_is_a_violation() -> None:
    weight = project(np.random.default_rng(0).standard_normal((64, 64)), OneByN(16), 0.5)
    dropped = np.flatnonzero(weight[32] == 0)[3]
    weight[37, dropped] = 1e-30
    assert check(weight, OneByN(16)) == CheckResult(False, 1, (32, int(dropped), 0, 0))


@pytest.mark.parametrize("other", [NM(2, 4), NM(1, 4), Unstructured()])
@pytest.mark.parametrize("shape", [(64, 64, 1, 1), (16, 64, 1, 1), (128, 32, 1, 1)])
def test_other_patterns_do_not_pass_as_blocks(shape: Index, other: Pattern) -> None:
    weight = project(np.random.default_rng(0).standard_normal(shape), other, 0.4)
    assert check(weight, OneByN(16)).violations > shape[0] // 16 * shape[1] // 2


@pytest.mark.parametrize("pruned", [NM(2, 4), Unstructured()])
@pytest.mark.parametrize("shape", [(64, 64, 1, 1), (16, 64, 1, 1), (40, 64, 3, 3), (128, 64, 1, 1)])
def test_blocks_kept_from_a_sparse_weight_may_be_sparse(shape: Index, pruned: Pattern) -> None:
    weight = project(np.random.default_rng(0).standard_normal(shape), pruned, 0.3)
    assert check(project(weight, OneByN(16), 0.5), OneByN(16)).ok


@given(weights(), st.integers(1, 20), st.floats(0, 1))
@examples(100)
def test_with_a_density_each_group_may_keep_that_share(weight: Array, n: int, share: float) -> None:
    outputs, inputs = weight.shape[:2]
    most = max(round(share * inputs), 1) if share else 0
    surplus = 0
    for start in range(0, outputs, n):
        group = weight[start : start + n]
        surplus += max(sum(bool(group[:, c].any()) for c in range(inputs)) - most, 0)
    assert check(weight, OneByN(n), share).violations == surplus


def test_with_a_density_the_weakest_blocks_are_the_violations() -> None:
    weight = np.ones((32, 8, 1, 1), np.float32)
    weight[:, 4:] = 0
    weight[20, 6] = 0.5
    assert check(weight, OneByN(16), 0.5) == CheckResult(False, 1, (16, 6, 0, 0))


def test_with_a_density_unstructured_may_keep_that_share() -> None:
    weight = np.arange(1.0, 9.0).reshape(2, 4)
    assert check(weight, Unstructured(), 0.75) == CheckResult(False, 2, (0, 0, 0, 0))
    weight[0, :2] = 0
    assert check(weight, Unstructured(), 0.75).ok


def test_density_out_of_range_is_refused() -> None:
    with pytest.raises(PatternError, match="between 0 and 1"):
        check(np.ones((16, 4)), OneByN(16), 1.5)


def test_stray_zero_in_a_kept_block_is_none() -> None:
    weight = np.ones((16, 8, 1, 1), np.float32)
    weight[:, 2] = 0
    weight[3, 6] = 0
    assert check(weight, OneByN(16)).ok


def test_zeros_inside_a_kernel_window_are_no_decision() -> None:
    weight = np.zeros((16, 4, 3, 3), np.float32)
    weight[:, :, 1, 1] = 1
    assert check(weight, OneByN(16)).ok


def test_dead_filter_has_no_say_in_its_blocks() -> None:
    weight = np.ones((4, 4, 1, 1), np.float32)
    weight[1:] = 0
    assert check(weight, OneByN(4)).ok


def test_linear_and_conv1d_weights_count_as_oihw() -> None:
    linear = np.zeros((3, 8), np.float32)
    linear[2, 4:7] = 1
    assert check(linear, NM(2, 4)) == CheckResult(False, 1, (2, 4, 0, 0))
    conv1d = np.zeros((2, 4, 3), np.float32)
    conv1d[1, :3, 2] = 1
    assert check(conv1d, NM(2, 4)) == CheckResult(False, 1, (1, 0, 0, 2))


def test_weight_with_another_rank_is_refused() -> None:
    with pytest.raises(PatternError, match="6 dimensions"):
        check(np.ones((1, 1, 1, 1, 1, 1)), NM(2, 4))


def test_weight_with_a_zero_sized_dimension_is_refused() -> None:
    with pytest.raises(WeightError, match=r"\(8, 0, 3, 3\)"):
        check(np.ones((8, 0, 3, 3)), NM(2, 4))
