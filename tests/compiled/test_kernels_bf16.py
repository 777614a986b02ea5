"""bfloat16 kernels on random shapes, against torch in float64 on the same rounded numbers.

What is left is the rounding of the output, 2^-9 of each value, and that of float32 sums.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Epilogue, GlobalAverage, Linear, Pool2d
from nmcompile.sparsity import NM, Dense, Detection, OneByN, Pattern, Unstructured, project
from tests.support.bfloat16_runner import bfloat16, expected, run_bfloat16
from tests.support.examples import crossed, examples
from tests.support.integer_problems import convolutions
from tests.support.kernel_runner import ACTIVATIONS, activation
from tests.support.tile_rows import LANES, UNITS, row_on

PATTERNS: dict[str, list[tuple[Pattern, float | None]]] = {
    "one_by_n": [(OneByN(n), d) for n in (16, 32, 64) for d in (0.1, 0.5, 0.0)],
    "nm": [
        (NM(2, 4), None), (NM(1, 16), None), (NM(3, 7), None), (NM(2, 8, "flat"), None),
        (Unstructured(), 0.2), (Unstructured(), 0.0), (OneByN(4), 0.5),
    ],
    "dense": [(Dense(), None), (NM(2, 4), None)],
}  # fmt: skip
ROWS = [(unit, method) for unit in UNITS for method in ("one_by_n", "dense")]
ROWS += [(LANES, method) for method in PATTERNS]


@st.composite
def epilogues(draw: st.DrawFn) -> Epilogue:
    residual = draw(st.booleans())
    kind = draw(st.sampled_from([*ACTIVATIONS, "none", "relu"]))
    in_place = residual and draw(st.booleans())
    return Epilogue(draw(st.booleans()), residual, activation(kind), in_place)


def make_problem(
    spec: Conv2d | Linear, pattern: Pattern, density: float | None, epilogue: Epilogue, seed: int
) -> tuple[Problem, Any, Any]:
    rng = np.random.default_rng(seed)
    if isinstance(spec, Conv2d):
        shape: tuple[int, ...] = (spec.out_channels, spec.group_in, *spec.kernel)
        x_shape: tuple[int, ...] = (spec.batch, spec.in_channels, spec.in_height, spec.in_width)
        out_shape: tuple[int, ...]
        out_shape = (spec.batch, spec.out_channels, spec.out_height, spec.out_width)
    else:
        shape = (spec.out_features, spec.in_features)
        x_shape, out_shape = (*spec.lead, spec.in_features), (*spec.lead, spec.out_features)
    weight = rng.standard_normal(shape).astype(np.float32)
    if not isinstance(pattern, Dense):
        weight = project(weight, pattern, density)
    bias = rng.standard_normal(shape[0]).astype(np.float32) if epilogue.bias else None
    kept = float(np.count_nonzero(weight)) / weight.size
    problem = Problem(
        spec, epilogue, weight, bias, Detection(pattern, (pattern,), kept), "bfloat16"
    )
    x = rng.standard_normal(x_shape).astype(np.float32)
    residual = rng.standard_normal(out_shape).astype(np.float32) if epilogue.residual else None
    return problem, x, residual


def assert_close(found: Any, wanted: Any) -> None:
    assert found.shape == wanted.shape
    span = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, rtol=2**-8, atol=1e-5 * span)


@pytest.mark.parametrize(("unit", "method"), ROWS)
@examples(2, 30)
@given(conv=convolutions(), epilogue=epilogues(), data=st.data())
def test_convolutions(
    unit: str, method: str, conv: Conv2d, epilogue: Epilogue, data: st.DataObject
) -> None:
    kernel = row_on(unit, f"conv2d_bf16_{method}")
    pattern, density = data.draw(st.sampled_from(PATTERNS[method]))
    problem, x, residual = make_problem(conv, pattern, density, epilogue, 1)
    assert kernel.refuse(problem) is None
    configs = kernel.configs(problem)
    config = configs[data.draw(st.integers(0, len(configs) - 1))].config
    found = run_bfloat16(kernel, problem, x, residual, config)
    assert_close(found, expected(problem, x, residual))


GROUPED = [
    Conv2d(2, 24, 5, 9, 40, (3, 3), (1, 1), (1, 0, 1, 2), groups=4),
    Conv2d(1, 10, 4, 5, 20, (3, 3), (2, 2), (1, 1, 1, 1), groups=10),
    Conv2d(2, 64, 9, 9, 48, (1, 1), (2, 2)),
]


@pytest.mark.parametrize("unit", ["hardware", LANES])
@pytest.mark.parametrize("conv", GROUPED, ids=str)
def test_groups_and_strides(conv: Conv2d, unit: str) -> None:
    problem, x, _ = make_problem(conv, Dense(), None, Epilogue(bias=True), 1)
    methods = ("dense", "nm") if unit == LANES else ("dense",)
    rows = [row_on(unit, f"conv2d_bf16_{method}") for method in methods]
    takers = [row for row in rows if row.refuse(problem) is None]
    assert takers
    for row in takers:
        found = run_bfloat16(row, problem, x, None)
        span = float(np.abs(found).max())
        # Weights are rounded too, of depthwise convolutions as well.
        assert np.abs(found - expected(problem, x, None)).max() < 0.01 * span


@pytest.mark.parametrize(("unit", "method"), ROWS)
@examples(2, 30)
@given(
    rows=st.sampled_from([(1,), (17,), (50,)]),
    features=st.sampled_from([1, 3, 30, 64, 257]),
    outputs=st.sampled_from([1, 10, 16, 33, 100]),
)
def test_matrix_products(
    unit: str, method: str, rows: tuple[int, ...], features: int, outputs: int
) -> None:
    pattern, density = PATTERNS[method][0]
    spec = Linear(rows, features, outputs)
    problem, x, _ = make_problem(spec, pattern, density, Epilogue(bias=True), 3)
    found = run_bfloat16(row_on(unit, f"linear_bf16_{method}"), problem, x, None)
    assert_close(found, expected(problem, x, None))


@pytest.mark.parametrize(
    ("channels", "window"),
    crossed([3, 8, 24, 32, 40, 100], [(3, 1, 1), (5, 2, 1), (3, 1, 2)]),
)
def test_depthwise(channels: int, window: tuple[int, int, int]) -> None:
    size, stride, dilation = window
    conv = Conv2d(
        2, channels, 9, 11, channels, (size, size), (stride, stride), (2, 1, 1, 2),
        (dilation, dilation), channels,
    )  # fmt: skip
    epilogue = Epilogue(True, True, activation("relu"), stride == 1)
    problem, x, residual = make_problem(conv, Dense(), None, epilogue, 1)
    kernel = row_on(LANES, "conv2d_bf16_depthwise")
    assert kernel.refuse(problem) is None
    assert_close(run_bfloat16(kernel, problem, x, residual), expected(problem, x, residual))


POOLS = [("max", False), ("average", False), ("average", True)]


@pytest.mark.parametrize(("channels", "pool"), crossed([3, 8, 40, 96], POOLS))
def test_pooling(channels: int, pool: tuple[Any, bool]) -> None:
    kind, inside = pool
    spec = Pool2d(
        kind, 2, channels, 9, 10, 5, 5, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=inside
    )
    x = np.random.default_rng(0).standard_normal((2, channels, 9, 10)).astype(np.float32)
    problem = Problem(spec, dtype="bfloat16")
    found = run_bfloat16(row_on(LANES, "pool2d_bf16"), problem, x, None)
    assert_close(found, expected(problem, x, None))


@pytest.mark.parametrize("channels", [1, 20, 64])
def test_global_average(channels: int) -> None:
    spec = GlobalAverage(2, channels, 5, 7, (2, channels))
    x = np.random.default_rng(0).standard_normal((2, channels, 5, 7)).astype(np.float32)
    problem = Problem(spec, dtype="bfloat16")
    found = run_bfloat16(row_on(LANES, "global_average_bf16"), problem, x, None)
    assert_close(found, expected(problem, x, None))


@pytest.mark.parametrize("unit", ["software", LANES])
def test_nan_reaches_what_reads_it_and_nothing_else(unit: str) -> None:
    """Lists do not read the channels that they leave out, nor what lies behind the last."""
    conv = Conv2d(1, 72, 5, 6, 32, (3, 3), (1, 1), (1, 1, 1, 1))
    problem, x, _ = make_problem(conv, OneByN(16), 0.3, Epilogue(activation=activation("relu")), 1)
    assert problem.weight is not None
    x[0, :, 2, 3] = np.nan
    left_out = ~problem.weight[:16].any(axis=(0, 2, 3))
    x[0, left_out, :, :] = np.nan
    found = run_bfloat16(row_on(unit, "conv2d_bf16_one_by_n"), problem, x, None)
    rows, columns = np.nonzero(np.isnan(found[0, 0]))
    wanted = [(y, x) for y in (1, 2, 3) for x in (2, 3, 4)]
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("unit", ["software", LANES])
def test_what_is_rounded_is_rounded_to_the_nearest_even(unit: str) -> None:
    """A 1x1 convolution by one gives its input back; halves of a step go to the even neighbour."""
    conv = Conv2d(1, 8, 4, 4, 8, (1, 1))
    problem, x, _ = make_problem(conv, Dense(), None, Epilogue(), 1)
    weight = np.eye(8, dtype=np.float32)[:, :, None, None]
    problem = Problem(conv, Epilogue(), weight, None, problem.detection, "bfloat16")
    x = x + np.float32(1) + np.arange(16, dtype=np.float32).reshape(4, 4) * 2**-8
    found = run_bfloat16(row_on(unit, "conv2d_bf16_dense"), problem, x, None)
    np.testing.assert_array_equal(found, bfloat16(x))
