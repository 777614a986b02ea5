"""Searches for orders of channels, against projection and against every order there is."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.sparsity import NM, OneByN, Pattern, project
from nmcompile.sparsity.permute import Deadline, Window, search_order, window
from nmcompile.sparsity.project import block_norms, kept_of_norms
from nmcompile.sparsity.rearrange import Filters, search_filters
from tests.support.examples import examples

Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kept(weight: Array, pattern: Pattern, density: float | None = None) -> float:
    """The magnitude that projection keeps of a weight (out, in)."""
    return float(np.abs(project(weight, pattern, density)).sum(dtype=np.float64))


def whole(weight: Array, m: int) -> Window:
    return window(np.abs(weight).T, m, 0, weight.shape[1])


def partitions(items: list[int], size: int) -> Iterator[list[int]]:
    """Every way to put the items into groups, one group after the other."""
    if not items:
        yield []
        return
    for rest in itertools.combinations(items[1:], min(size, len(items)) - 1):
        left = [item for item in items[1:] if item not in rest]
        for later in partitions(left, size):
            yield [items[0], *rest, *later]


@examples(60)
@given(
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (2, 8), (4, 4)]),
    before=st.integers(0, 9),
    channels=st.integers(1, 17),
    behind=st.integers(0, 5),
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    seed=st.integers(0, 2**31),
)
def test_an_order_never_keeps_less_and_what_it_says_is_what_projection_keeps(
    pattern: tuple[int, int], before: int, channels: int, behind: int, rows: list[int], seed: int
) -> None:
    n, m = pattern
    # Two weights read the channels, the second among others.
    offsets = [0, before][: len(rows)]
    sizes = [channels, before + channels + behind][: len(rows)]
    weights = [
        normal(seed + i, r, size) for i, (r, size) in enumerate(zip(rows, sizes, strict=True))
    ]
    windows = [
        window(np.abs(weight).T, m, offset, channels)
        for weight, offset in zip(weights, offsets, strict=True)
    ]
    found = search_order(windows, channels, n, m, seed=seed, escapes=5)
    assert sorted(found.order) == list(range(channels))
    assert found.after >= found.before and found.finished
    changes = {"before": 0.0, "after": 0.0}
    for weight, offset in zip(weights, offsets, strict=True):
        moved = weight.copy()
        moved[:, offset : offset + channels] = weight[:, offset + found.order]
        changes["before"] += kept(weight, NM(n, m))
        changes["after"] += kept(moved, NM(n, m))
    # Windows leave out groups that do not change.
    gain = changes["after"] - changes["before"]
    assert gain == pytest.approx(found.after - found.before, abs=1e-4)


@pytest.mark.parametrize(("n", "m", "channels"), [(2, 4, 8), (1, 4, 8), (1, 2, 8), (2, 4, 12)])
def test_small_weights_get_the_best_order_there_is(n: int, m: int, channels: int) -> None:
    for seed in range(4):
        weight = normal(seed, 6, channels)
        best = max(
            kept(weight[:, order], NM(n, m)) for order in partitions(list(range(channels)), m)
        )
        found = search_order([whole(weight, m)], channels, n, m, seed=seed)
        assert found.after == pytest.approx(best, rel=1e-5)


def test_a_pattern_that_a_permutation_hides_is_found_again() -> None:
    weight = project(normal(0, 48, 64), NM(2, 4))
    hidden = weight[:, np.random.default_rng(1).permutation(64)]
    found = search_order([whole(hidden, 4)], 64, 2, 4)
    total = float(np.abs(weight).sum(dtype=np.float64))
    assert found.before < 0.95 * total
    assert found.after == pytest.approx(total, rel=1e-6)


def test_larger_weights_keep_more() -> None:
    weight = normal(0, 64, 128)
    found = search_order([whole(weight, 4)], 128, 2, 4)
    assert found.after > 1.02 * found.before


def test_channels_ascend_within_a_group() -> None:
    found = search_order([whole(normal(3, 9, 24), 4)], 24, 2, 4)
    assert (np.diff(found.order.reshape(-1, 4), axis=1) > 0).all()


def test_a_seed_decides_the_order() -> None:
    weight = normal(0, 16, 64)
    orders = [
        search_order([whole(weight, 4)], 64, 2, 4, seed=seed).order.tolist() for seed in (5, 5, 6)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_what_is_found_in_time_counts(seconds: float) -> None:
    weight = normal(0, 512, 512)
    found = search_order([whole(weight, 4)], 512, 2, 4, deadline=Deadline.after(seconds))
    assert not found.finished
    assert sorted(found.order) == list(range(512))
    assert found.after == pytest.approx(kept(weight[:, found.order], NM(2, 4)), rel=1e-5)
    assert found.after >= found.before
    blocks = filters(normal(0, 64, 64), 16, 0.5)
    assert search_filters([blocks], 16, deadline=Deadline.after(0.0)).order.tolist() == [*range(64)]


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    search_order([whole(normal(0, 8, 32), 4)], 32, 2, 4, on_share=shares.append)
    assert all(0 <= share <= 1 for share in shares) and shares[-1] == 1.0


# 1xN


def filters(weight: Array, n: int, density: float) -> Filters:
    return Filters(np.abs(weight), lambda norms: kept_of_norms(norms, density))


@examples(60)
@given(
    n=st.sampled_from([1, 2, 4, 8]),
    channels=st.integers(1, 20),
    inputs=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    density=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_an_arrangement_never_keeps_less_and_says_what_projection_keeps(
    n: int, channels: int, inputs: list[int], density: float, seed: int
) -> None:
    weights = [normal(seed + i, channels, size) for i, size in enumerate(inputs)]
    layers = [filters(weight, n, density) for weight in weights]
    found = search_filters(layers, n, seed=seed, escapes=5)
    assert sorted(found.order) == list(range(channels))
    assert found.after >= found.before and found.finished
    kept_before = sum(kept(weight, OneByN(n), density) for weight in weights)
    kept_after = sum(kept(weight[found.order], OneByN(n), density) for weight in weights)
    assert found.before == pytest.approx(kept_before, rel=1e-5, abs=1e-6)
    assert found.after == pytest.approx(kept_after, rel=1e-5, abs=1e-6)
    for begin in range(0, channels, n):
        assert (np.diff(found.order[begin : begin + n]) > 0).all()


def test_small_weights_get_nearly_the_best_arrangement() -> None:
    for seed in range(4):
        weight = normal(seed, 8, 6)
        best = max(kept(weight[order], OneByN(4), 0.5) for order in partitions(list(range(8)), 4))
        found = search_filters([filters(weight, 4, 0.5)], 4, seed=seed)
        assert found.after >= 0.98 * best


def test_blocks_that_a_permutation_hides_are_found_again() -> None:
    weight = project(normal(0, 64, 32), OneByN(8), 0.5)
    hidden = weight[np.random.default_rng(1).permutation(64)]
    found = search_filters([filters(hidden, 8, 0.5)], 8)
    assert found.before < 0.9 * np.abs(weight).sum()
    assert found.after == pytest.approx(float(np.abs(weight).sum(dtype=np.float64)), rel=1e-6)


def test_any_rule_of_masks_can_be_searched() -> None:
    def above_average(norms: Array) -> Array:
        return np.asarray(norms > norms.mean())

    weight = normal(0, 32, 16)
    found = search_filters([Filters(np.abs(weight), above_average)], 8)
    norms = block_norms(weight[found.order][:, :, None, None], 8)
    assert found.after == pytest.approx(float(norms[norms > norms.mean()].sum()))
    assert found.after > found.before
