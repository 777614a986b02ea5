"""Panel-row lists hold exactly the rows that the weight has."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nmcompile.errors import PatternError
from nmcompile.sparsity import OneByN, pack_rows, project, unpack_rows
from tests.support.examples import examples

Array = NDArray[Any]


@st.composite
def weights(draw: st.DrawFn) -> Array:
    shape = draw(
        st.tuples(
            st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 3]), st.integers(1, 3)
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0, 0.02, 0.1, 0.5, 1]))
    weight = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0)
    return weight.astype(np.float32)


@given(weights(), st.integers(1, 33), st.booleans())
@examples(150)
def test_pack_then_unpack_is_the_identity(weight: Array, n: int, windows: bool) -> None:
    run = weight.shape[2] * weight.shape[3] if windows else 1
    restored = unpack_rows(pack_rows(weight, n, run))
    assert restored.dtype == weight.dtype
    assert np.array_equal(restored, weight)


@given(weights(), st.integers(1, 33), st.booleans())
@examples(80)
def test_lists_agree_with_naive_loops(weight: Array, n: int, windows: bool) -> None:
    outputs = weight.shape[0]
    run = weight.shape[2] * weight.shape[3] if windows else 1
    rows = weight.reshape(outputs, -1)
    counts, indices, values = [], [], []
    for start in range(0, outputs, n):
        panel = np.zeros((n, rows.shape[1]), np.float32)
        panel[: min(n, outputs - start)] = rows[start : start + n]
        entries = [
            e for e in range(rows.shape[1] // run) if panel[:, e * run : (e + 1) * run].any()
        ]
        counts.append(len(entries))
        indices += entries
        values += [panel[:, e * run + k] for e in entries for k in range(run)]
    packed = pack_rows(weight, n, run)
    assert packed.shape == weight.shape
    assert (packed.n, packed.run) == (n, run)
    assert packed.counts.dtype == packed.indices.dtype == np.int32
    assert packed.counts.tolist() == counts
    assert packed.indices.tolist() == indices
    assert packed.values.flags.c_contiguous
    assert np.array_equal(packed.values, np.array(values, np.float32).reshape(-1, n))


def test_panel_of_zeros_has_no_entries() -> None:
    weight = np.zeros((32, 4, 3, 3), np.float32)
    weight[16:, 2] = 1
    packed = pack_rows(weight, 16, 9)
    assert packed.counts.tolist() == [0, 1]
    assert packed.indices.tolist() == [2]


def test_one_by_n_weight_packs_without_stored_zeros() -> None:
    weight = np.random.default_rng(0).uniform(0.1, 1, (64, 32, 3, 3)).astype(np.float32)
    sparse = project(weight, OneByN(16), 0.25)
    packed = pack_rows(sparse, 16, 9)
    assert packed.counts.tolist() == [8] * 4
    assert packed.values.size == np.count_nonzero(sparse)


def test_linear_weight_unpacks_as_oihw() -> None:
    weight = np.eye(5, 7, dtype=np.float32)
    restored = unpack_rows(pack_rows(weight, 4, 1))
    assert np.array_equal(restored, weight[:, :, None, None])


@pytest.mark.parametrize("run", [0, -1, 2, 27])
def test_run_that_does_not_divide_the_rows_is_refused(run: int) -> None:
    with pytest.raises(PatternError, match=f"run of {run} rows .* 45 rows"):
        pack_rows(np.ones((4, 5, 3, 3), np.float32), 16, run)


def test_empty_panel_is_refused() -> None:
    with pytest.raises(PatternError, match="panel of 0"):
        pack_rows(np.ones((4, 4), np.float32), 0, 1)
