"""Every AVX-512 row of matrix products in float32 on random shapes, against float64."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Epilogue, Linear
from nmcompile.sparsity import (
    NM,
    Dense,
    Detection,
    OneByN,
    Pattern,
    Unstructured,
    detect,
    project,
)
from tests.support.examples import crossed, examples
from tests.support.kernel_runner import (
    ACTIVATIONS,
    activation,
    epilogues,
    reference,
    relative_error,
    run_kernel,
)

PRODUCTS = [row for row in CATALOG if (row.op, row.target) == ("linear", "avx512")]
ONE_BY_N, N_IN_M = "linear_f32_one_by_n__avx512", "linear_f32_nm__avx512"
PATTERNS: list[tuple[Pattern, float | None]] = [
    *((OneByN(n), d) for n in (2, 4, 8, 12, 16, 32) for d in (0.25, 0.5)),
    (NM(2, 4), None), (NM(1, 4), None), (NM(1, 16), None), (NM(2, 8, "flat"), None),
    (NM(2, 4, "ohwi"), None), (Unstructured(), 0.1), (Unstructured(), 0.02),
    (Dense(), None),
]  # fmt: skip
"""With the share that is kept, where they do not say it."""


def row(name: str) -> Kernel:
    return next(kernel for kernel in PRODUCTS if kernel.name == name)


def make_problem(
    linear: Linear, pattern: Pattern, density: float | None, epilogue: Epilogue, seed: int
) -> tuple[Problem, Any, Any]:
    """A problem, an input and a residual."""
    rng = np.random.default_rng(seed)
    shape = (linear.out_features, linear.in_features)
    weight = project(rng.standard_normal(shape, dtype=np.float32), pattern, density)
    bias = rng.standard_normal(linear.out_features, dtype=np.float32) if epilogue.bias else None
    kept = float(np.count_nonzero(weight)) / weight.size
    problem = Problem(linear, epilogue, weight, bias, Detection(pattern, (pattern,), kept))
    x = rng.standard_normal((*linear.lead, linear.in_features), dtype=np.float32)
    out = (*linear.lead, linear.out_features)
    residual = rng.standard_normal(out, dtype=np.float32) if epilogue.residual else None
    return problem, x, residual


@st.composite
def products(draw: st.DrawFn) -> Linear:
    """Rows, in one or more dimensions, and features in whole vectors and not."""
    lead = draw(st.one_of(
        st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 3), st.integers(1, 70)),
        st.just((2, 3, 4)),
    ))  # fmt: skip
    features = st.one_of(st.integers(1, 130), st.sampled_from([16, 32, 64, 128]))
    return Linear(lead, draw(features), draw(features))


def taken(kernel: Kernel) -> list[tuple[Pattern, float | None]]:
    """The patterns that a row takes."""
    linear = Linear((20,), 64, 64)
    return [
        wanted
        for wanted in PATTERNS
        if kernel.refuse(make_problem(linear, *wanted, Epilogue(), 0)[0]) is None
    ]


@pytest.mark.parametrize("kernel", PRODUCTS, ids=lambda kernel: kernel.name)
@examples(4, 100)
@given(data=st.data())
def test_products_agree_with_float64(kernel: Kernel, data: st.DataObject) -> None:
    linear, wanted = data.draw(products()), data.draw(st.sampled_from(taken(kernel)))
    epilogue = data.draw(epilogues(["none", "relu", "gelu"]))
    problem, x, residual = make_problem(linear, *wanted, epilogue, data.draw(st.integers(0)))
    assume(kernel.refuse(problem) is None)
    config = data.draw(st.sampled_from([found.config for found in kernel.configs(problem)]))
    found = run_kernel(kernel, problem, x, residual, config)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


@pytest.mark.parametrize(
    ("linear", "pattern", "density", "chunks"),
    [
        # Blocks of inputs whose last one is short, no whole vectors of features anywhere.
        (Linear((70,), 1003, 37), Unstructured(), 0.1, 1),
        # Parts of outputs that end within a vector, sums that rest between blocks.
        (Linear((21,), 320, 520), NM(1, 4), None, 2),
        # Lists that are padded, and whose outputs are written once all are there.
        (Linear((33,), 48, 150), OneByN(12), 0.5, 2),
        # Two vectors of outputs in one list.
        (Linear((197,), 96, 320), OneByN(32), 0.3, 2),
    ],
)
def test_parts_of_large_products_agree_with_float64(
    linear: Linear, pattern: Pattern, density: float | None, chunks: int
) -> None:
    epilogue = Epilogue(True, True, activation("gelu"), in_place=True)
    problem, x, residual = make_problem(linear, pattern, density, epilogue, 0)
    kernel = row(ONE_BY_N if isinstance(pattern, OneByN) else N_IN_M)
    configs = [candidate.config for candidate in kernel.configs(problem)]
    config = replace(configs[0], chunks=chunks)
    found = run_kernel(kernel, problem, x, residual, config)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


def test_scattered_blocks_agree_with_float64() -> None:
    linear = Linear((2, 25), 60, 56)
    problem, x, residual = make_problem(linear, OneByN(8), 0.4, Epilogue(True, True), 0)
    places = np.random.default_rng(1).permutation(linear.out_features)
    assert problem.weight is not None
    weight = problem.weight[places]
    problem = replace(problem, weight=weight, detection=detect(weight))
    assert problem.scattered is not None
    kernel = row(ONE_BY_N)
    assert all(candidate.config.chunks == 1 for candidate in kernel.configs(problem))
    found = run_kernel(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "pattern"), crossed(sorted(ACTIVATIONS), [Dense(), OneByN(16), NM(2, 4)]), ids=str
)
def test_activations_of_products_agree_with_float64(kind: str, pattern: Pattern) -> None:
    epilogue = Epilogue(True, True, activation(kind), in_place=True)
    density = 0.5 if isinstance(pattern, OneByN) else None
    problem, x, residual = make_problem(Linear((18,), 32, 40), pattern, density, epilogue, 0)
    # Far beyond where the activations saturate, on both sides.
    x *= 20
    kernel = next(kernel for kernel in PRODUCTS if kernel.refuse(problem) is None)
    found = run_kernel(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


def test_products_without_weights_give_the_bias() -> None:
    tried = set[str]()
    for pattern in (OneByN(16), NM(2, 4), Unstructured()):
        problem, x, _ = make_problem(Linear((20,), 32, 40), pattern, 0.5, Epilogue(bias=True), 0)
        assert problem.weight is not None
        problem.weight[...] = 0
        for kernel in PRODUCTS:
            if kernel.name not in tried and kernel.refuse(problem) is None:
                tried.add(kernel.name)
                found = run_kernel(kernel, problem, x, None)
                assert relative_error(found, reference(problem, x, None)) < 1e-6


@pytest.mark.parametrize("rows", [1, 197])
@pytest.mark.parametrize("pattern", [OneByN(16), NM(2, 4), NM(1, 4)], ids=str)
def test_products_run_sparse_whatever_their_rows(pattern: Pattern, rows: int) -> None:
    problem, _, _ = make_problem(Linear((1, rows), 384, 384), pattern, 0.5, Epilogue(), 0)
    choice = choose("linear", "avx512", problem)
    assert choice.kernel.sparse and choice.reason == ""
