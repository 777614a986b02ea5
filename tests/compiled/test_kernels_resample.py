"""Resizing by linear maps, on random shapes, against float64."""

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given
from hypothesis import strategies as st

from nmcompile.kernels.avx512.resample import refuse_resample
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Resample, Taps
from tests.support.examples import examples
from tests.support.kernel_runner import run_operands

EXTENTS = st.sampled_from([1, 2, 5, 8, 15, 16, 17, 33, 40])


@st.composite
def maps(draw: st.DrawFn) -> tuple[int, Taps]:
    """The extent of x, and up to three terms about where each element comes from."""
    extent, seed = draw(EXTENTS), draw(st.integers(0))
    wanted = max(round(extent * draw(st.sampled_from([1, 1.5, 2, 3]))), 1)
    random = np.random.default_rng(seed)
    count = draw(st.integers(1, 3))
    about = np.arange(wanted) * extent // wanted
    places = (about + random.integers(-1, 2, (count, wanted))).clip(0, extent - 1)
    weighted = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    weights = [
        tuple(random.standard_normal(wanted).astype(np.float32).tolist()) if given else None
        for given in weighted
    ]
    return extent, Taps(tuple(map(tuple, places.tolist())), tuple(weights))


def matrix_of(extent: int, taps: Taps) -> npt.NDArray[np.float64]:
    matrix = np.zeros((len(taps.places[0]), extent))
    for places, weights in zip(taps.places, taps.weights, strict=True):
        for row, place in enumerate(places):
            matrix[row, place] += 1 if weights is None else weights[row]
    return matrix


@examples(20)
@given(
    lead=st.lists(st.integers(1, 3), max_size=2), down=maps(), across=maps(), seed=st.integers(0)
)
def test_resampling_is_a_product_of_matrices(
    lead: list[int], down: tuple[int, Taps], across: tuple[int, Taps], seed: int
) -> None:
    (height, rows), (width, columns) = down, across
    spec = Resample((*lead, height, width), rows, columns)
    assume(refuse_resample(Problem(spec)) is None)
    x = np.random.default_rng(seed).standard_normal(spec.shape, dtype=np.float32)
    expected = matrix_of(height, rows) @ x.astype(np.float64) @ matrix_of(width, columns).T
    found = run_operands("resample", spec, [x], spec.out_shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_that_lie_apart_are_refused() -> None:
    taps = Taps((tuple(range(0, 64, 2)),), (None,))
    reason = refuse_resample(Problem(Resample((1, 64, 64), taps, taps)))
    assert reason == "16 columns of the result are made of 31: the kernel reads at most 16"
