"""1xN blocks of filters that do not follow each other: found, checked, and run as those that do."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Epilogue, Linear
from nmcompile.sparsity import OneByN, Unstructured, check, detect, project, stored_share
from nmcompile.sparsity.scattered import scattered_order
from tests.support.examples import examples, is_thorough
from tests.support.kernel_runner import (
    activation,
    output_shape,
    reference,
    relative_error,
    run_kernel,
)

Array = NDArray[Any]

TILES = 2 if is_thorough() else 1
"""How many tile sizes of each row."""


def rearranged(shape: tuple[int, ...], n: int, density: float, seed: int) -> Array:
    """A 1xN weight whose filters were shuffled afterwards."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.1, 1, shape).astype(np.float32)
    return np.asarray(project(weight, OneByN(n), density)[rng.permutation(shape[0])])


@given(
    blocks=st.integers(3, 9),
    rest=st.integers(0, 15),
    inputs=st.integers(8, 40),
    kernel=st.sampled_from([(1, 1), (3, 3)]),
    n=st.sampled_from([2, 4, 8, 16, 32]),
    density=st.floats(0.2, 0.7),
    seed=st.integers(0, 2**32 - 1),
)
@examples(80)
def test_shuffled_blocks_are_found(
    blocks: int,
    rest: int,
    inputs: int,
    kernel: tuple[int, int],
    n: int,
    density: float,
    seed: int,
) -> None:
    weight = rearranged((blocks * n + rest % n, inputs, *kernel), n, density, seed)
    found = detect(weight)
    assert OneByN(n) in found.holds
    assert check(weight, OneByN(n)).ok
    if found.order is not None:
        pattern = found.pattern
        assert isinstance(pattern, OneByN) and pattern.n >= n
        assert sorted(found.order) == list(range(len(weight)))
        in_order = detect(weight[list(found.order)])
        assert in_order.pattern == pattern and in_order.order is None
        assert stored_share(weight, pattern) == pytest.approx(
            stored_share(weight[list(found.order)], pattern)
        )


def test_a_weight_that_is_zero_by_chance_does_not_hide_its_block() -> None:
    weight = rearranged((96, 32, 1, 1), 16, 0.5, 0)
    for channel in range(0, 96, 9):
        weight[channel, np.flatnonzero(weight[channel])[channel % 7]] = 0
    found = detect(weight)
    assert found.pattern == OneByN(16) and found.order is not None


def test_filters_that_are_zero_fill_blocks_up() -> None:
    weight = rearranged((96, 32, 3, 3), 16, 0.4, 1)
    weight[::12] = 0
    found = detect(weight)
    assert found.pattern == OneByN(16) and found.order is not None


@pytest.mark.parametrize("inputs", [16, 64])
def test_single_weights_pruned_at_random_are_no_blocks(inputs: int) -> None:
    rng = np.random.default_rng(0)
    weight = project(
        rng.standard_normal((64, inputs, 1, 1)).astype(np.float32), Unstructured(), 0.4
    )
    assert detect(weight).pattern == Unstructured()
    assert not check(weight, OneByN(4)).ok


def test_filters_that_are_zero_alone_make_no_blocks() -> None:
    weight = np.ones((32, 8, 3, 3), np.float32)
    weight[::3] = 0
    assert scattered_order(weight != 0, 16) is None


ROWS = [
    row
    for row in CATALOG
    if "one_by_n" in row.name and (row.op, row.dtype) == ("conv2d", "float32")
]


@pytest.mark.parametrize(
    ("outputs", "size", "kind"), [(96, 14, "relu"), (88, 7, "silu"), (200, 7, "clip")]
)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_kernels_write_every_filter_to_its_channel(
    row: Kernel, outputs: int, size: int, kind: str
) -> None:
    conv = Conv2d(2, 32, size, size, outputs, (3, 3), padding=(1, 1, 1, 1))
    weight = rearranged((outputs, 32, 3, 3), 16, 0.4, 2)
    weight[weight[:, 5].any(axis=(1, 2)), 6] = 0  # so that lists have unequal lengths
    detection = detect(weight)
    assert detection.pattern == OneByN(16) and detection.order is not None
    rng = np.random.default_rng(3)
    bias = rng.standard_normal(outputs).astype(np.float32)
    problem = Problem(conv, Epilogue(True, True, activation(kind)), weight, bias, detection)
    assert row.refuse(problem) is None
    x = rng.standard_normal((2, 32, size, size)).astype(np.float32)
    residual = rng.standard_normal(output_shape(problem)).astype(np.float32)
    expected = reference(problem, x, residual)
    for candidate in row.configs(problem)[:TILES]:
        found = run_kernel(row, problem, x, residual, candidate.config)
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows"), [(64, 96, 40), (64, 200, 3), (256, 256, 1), (384, 1536, 197)]
)
def test_products_write_every_output_to_its_place(inputs: int, outputs: int, rows: int) -> None:
    weight = rearranged((outputs, inputs, 1, 1), 16, 0.4, 2)[:, :, 0, 0]
    detection = detect(weight)
    assert detection.pattern == OneByN(16) and detection.order is not None
    rng = np.random.default_rng(3)
    bias = rng.standard_normal(outputs).astype(np.float32)
    linear = Linear((rows,), inputs, outputs)
    problem = Problem(linear, Epilogue(True, True, activation("relu")), weight, bias, detection)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    residual = rng.standard_normal((rows, outputs)).astype(np.float32)
    expected = reference(problem, x, residual)
    able = [row for row in CATALOG if (row.op, row.dtype) == ("linear", "float32") and row.sparse]
    able = [row for row in able if row.refuse(problem) is None]
    assert able
    assert choose("linear", "avx512", problem).kernel.op == "linear"
    for row in able:
        for candidate in row.configs(problem)[:TILES]:
            found = run_kernel(row, problem, x, residual, candidate.config)
            assert relative_error(found, expected) < 1e-5


def test_chunks_of_equal_work_keep_the_channels_of_scattered_lists() -> None:
    row = next(row for row in ROWS if "winograd" not in row.name)
    conv = Conv2d(1, 64, 7, 7, 256, (1, 1))
    weight = rearranged((256, 64, 1, 1), 16, 0.5, 4)
    classes = np.unique((weight != 0).reshape(256, -1), axis=0)
    for index, support in enumerate(classes[:8]):  # half of the blocks keep much less
        same = (weight.reshape(256, -1) != 0) == support
        weight[same.all(axis=1), : 40 + index] = 0
    detection = detect(weight)
    assert detection.order is not None
    problem = Problem(conv, Epilogue(), weight, None, detection)
    x = np.random.default_rng(5).standard_normal((1, 64, 7, 7)).astype(np.float32)
    for candidate in [c for c in row.configs(problem) if c.config.chunks > 1][:2]:
        found = run_kernel(row, problem, x, None, candidate.config)
        assert relative_error(found, reference(problem, x, None)) < 1e-5
