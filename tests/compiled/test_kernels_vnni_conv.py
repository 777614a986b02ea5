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
from hypothesis import assume, given
from hypothesis import strategies as st

from nmcompile.errors import TargetError
from nmcompile.kernels.avx512_vnni.lanes.config import LanesConfig, Method
from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.integers import Integers, Residual, Rounding
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.sparsity import NM, Dense, Detection, OneByN, Pattern, Unstructured, project
from tests.support.examples import examples
from tests.support.integer_runner import exact_sums, finished, run_integers
from tests.support.kernel_runner import activation

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


@st.composite
def convolutions(draw: st.DrawFn) -> Conv2d:
    """Any geometry with an output pixel: ragged tiles, strides, asymmetric padding, dilation."""
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 3)]))
    padded = draw(st.booleans())
    sides = [draw(st.integers(0, 3)) if padded else 0 for _ in range(4)]
    conv = Conv2d(
        batch=draw(st.sampled_from([1, 1, 2])),
        in_channels=draw(st.sampled_from([1, 3, 16, 30, 64, 70, 96, 128, 200])),
        in_height=draw(st.integers(1, 10)),
        in_width=draw(st.sampled_from([1, 5, 7, 14, 17, 30])),
        out_channels=draw(st.sampled_from([1, 10, 16, 24, 32, 48, 64, 80, 100])),
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 4)])),
        padding=(sides[0], sides[1], sides[2], sides[3]),
        dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)])),
    )
    assume(conv.out_height > 0 and conv.out_width > 0)
    return conv


def make_problem(
    spec: Conv2d | Linear, pattern: Pattern, density: float | None, seed: int, **integers: Any
) -> tuple[Problem, Any]:
    """A problem whose output is its sums, unless told otherwise, and an input."""
    rng = np.random.default_rng(seed)
    if isinstance(spec, Conv2d):
        shape: tuple[int, ...] = (spec.out_channels, spec.group_in, *spec.kernel)
    else:
        shape = (spec.out_features, spec.in_features)
    drawn = rng.integers(1, 128, shape) * rng.choice([-1, 1], shape)
    weight = project(drawn.astype(np.float32), pattern, density).astype(np.int8)
    outputs = shape[0]
    settings: dict[str, Any] = {
        "x_zero": int(rng.integers(0, 256)),
        "scale": np.ones(outputs, np.float32),
        "offset": rng.integers(-1000, 1000, outputs).astype(np.int32),
        "out": "float32",
    }
    kept = float(np.count_nonzero(weight)) / weight.size
    problem = Problem(
        spec,
        weight=weight,
        detection=Detection(pattern, (pattern,), kept),
        dtype="int8",
        integers=Integers(**(settings | integers)),
    )
    return problem, rng.integers(0, 256, problem.bytes_shapes[0]).astype(np.uint8)


def assert_sums(kernel: Kernel, problem: Problem, x: Any, config: Any = None) -> None:
    """The exact sums, as float32 has them."""
    assert kernel.refuse(problem) is None
    found = run_integers(kernel, problem, x, None, config)
    np.testing.assert_array_equal(found, exact_sums(problem, x).astype(np.float32))


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda kernel: kernel.name)
@examples(8)
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
@examples(5)
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


TILED = [
    *(("picked", vectors, 0) for vectors in (1, 2, 3, 4, 5)),
    *(("dense", vectors, 0) for vectors in (1, 2, 3, 4, 5)),
    *(("gathered", vectors, 16 * vectors) for vectors in (1, 2, 3, 4)),
    # Lists of one vector, of the group's, and of some that do not part as groups do.
    *(("picked", vectors, shared) for vectors, shared in ((1, 16), (3, 16), (2, 32), (2, 48))),
]


@pytest.mark.parametrize(("method", "vectors", "shared"), TILED)
def test_any_tile_is_exact(method: Method, vectors: int, shared: int) -> None:
    """Whole and ragged tiles, vectors and outputs, in whole and partial blocks and chunks."""
    name = "one_by_n" if shared else "nm" if method == "picked" else "dense"
    kernel = CONVOLUTIONS[METHODS.index(name)]
    pattern: Pattern = OneByN(shared) if shared else NM(2, 4)
    conv = Conv2d(2, 72, 6, 8, 150, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, x = make_problem(conv, pattern, 0.5, 2)
    for pixels, rows, tiles, chunks in ((3, 4, 2, 2), (5, 1, 1, 1)):
        config = LanesConfig(method, pixels, vectors, rows, tiles, chunks, shared)
        assert_sums(kernel, problem, x, config)


@st.composite
def epilogues(draw: st.DrawFn) -> dict[str, Any]:
    """What becomes of the sums."""
    kind = draw(st.sampled_from(["none", "none", "hard_swish", "sigmoid"]))
    out = draw(st.sampled_from(["uint8", "uint8", "float32"]))
    residual = draw(st.booleans())
    zero = draw(st.sampled_from([0, 3, 128]))
    return {
        "middle": Rounding(-100, 90, 0.61) if draw(st.booleans()) else None,
        "residual": Residual(draw(st.integers(0, 255)), 0.37) if residual else None,
        "activation": activation(kind),
        "factor": {"none": 1.0, "hard_swish": 17.3, "sigmoid": 190.0}[kind],
        "out": out,
        "zero": zero,
        "low": draw(st.sampled_from([0, zero])),
        "high": draw(st.sampled_from([255, 200])),
        "in_place": residual and out == "uint8" and draw(st.booleans()),
    }


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda kernel: kernel.name)
@examples(6)
@given(
    epilogue=epilogues(), outputs=st.sampled_from([16, 32, 40, 72]), seed=st.integers(0, 1 << 16)
)
def test_sums_become_what_the_formula_says(
    kernel: Kernel, epilogue: dict[str, Any], outputs: int, seed: int
) -> None:
    conv = Conv2d(1, 30, 6, 7, outputs, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, x = make_problem(conv, TYPICAL[method_of(kernel)], 0.5, seed)
    sums = exact_sums(problem, x)
    spread = 1 + np.ptp(sums.reshape(-1, outputs), axis=0)
    span = 12.0 if epilogue["activation"].kind != "none" else 250.0
    assert problem.integers is not None
    integers = replace(problem.integers, scale=(span / spread).astype(np.float32), **epilogue)
    problem = replace(problem, integers=integers)
    residual = None
    if integers.residual is not None:
        rng = np.random.default_rng(seed)
        residual = rng.integers(0, 256, problem.bytes_shapes[1]).astype(np.uint8)
    found = run_integers(kernel, problem, x, residual)
    wanted = finished(integers, sums, residual)
    if integers.out == "float32":
        steps = 1.0 if integers.middle is None else 0.61
        # A sum at a half of the middle rounding may be rounded the other way.
        off = np.abs(found - wanted) > 1e-4 * max(1.0, float(np.abs(wanted).max()))
        assert np.abs(found - wanted).max() <= 1.1 * steps * integers.factor
    else:
        difference = np.abs(found.astype(int) - wanted.astype(int))
        off = difference > 0
        assert difference.max() <= 1
    assert np.mean(off) <= 0.01
    assert len(np.unique(found)) > 1


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
