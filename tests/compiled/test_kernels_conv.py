"""Every AVX-512 convolution row on random shapes, against float64."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nmcompile.kernels.catalog import CATALOG, Kernel, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue
from nmcompile.sparsity import NM, Dense, Detection, OneByN, Pattern, Unstructured, project
from tests.support.examples import examples, is_thorough
from tests.support.kernel_runner import (
    ACTIVATIONS,
    activation,
    epilogues,
    reference,
    relative_error,
    run_kernel,
    tolerance_of,
)

CONVOLUTIONS = [row for row in CATALOG if (row.op, row.target) == ("conv2d", "avx512")]
PATTERNS: dict[str, list[tuple[Pattern, float | None]]] = {
    "one_by_n": [(OneByN(n), d) for n in (2, 4, 8, 16, 32) for d in (0.25, 0.5)],
    "winograd_one_by_n": [(OneByN(n), d) for n in (4, 16) for d in (0.25, 0.5)],
    "winograd": [(Dense(), None), (NM(2, 4), None)],
    "nm": [(NM(2, 4), None), (NM(1, 4), None), (NM(1, 16), None), (NM(2, 8, "flat"), None),
           (NM(2, 4, "ohwi"), None), (Unstructured(), 0.1), (Unstructured(), 0.02)],
    "dense": [(Dense(), None)],
    "depthwise": [(Dense(), None)],
}  # fmt: skip


def patterns_of(kernel: Kernel) -> list[tuple[Pattern, float | None]]:
    """The patterns that a row is for, by the method in its name."""
    return PATTERNS[kernel.name.removeprefix("conv2d_f32_").removesuffix(f"__{kernel.target}")]


@st.composite
def convolutions(draw: st.DrawFn, depthwise: bool) -> Conv2d:
    """Any geometry with at least one output pixel: tails, strides, asymmetric padding, groups."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 3), (4, 4)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    same = draw(st.booleans())
    padding = tuple(
        dilation[axis] * (kernel[axis] - 1) // 2 if same else draw(st.integers(0, 3))
        for axis in (0, 1, 0, 1)
    )
    if depthwise:
        groups = draw(st.integers(2, 20))
        channels, outputs = groups, groups * draw(st.sampled_from([1, 1, 2]))
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        channels, outputs = groups * draw(st.integers(1, 40)), groups * draw(st.integers(1, 40))
        assume(groups == 1 or channels > groups)
    conv = Conv2d(
        batch=draw(st.sampled_from([1, 1, 2])),
        in_channels=channels,
        in_height=draw(st.integers(1, 20)),
        in_width=draw(st.sampled_from([1, 5, 7, 14, 16, 17, 23, 33])),
        out_channels=outputs,
        kernel=kernel,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 4)])),
        padding=(padding[0], padding[1], padding[2], padding[3]),
        dilation=dilation,
        groups=groups,
    )
    assume(conv.out_height > 0 and conv.out_width > 0)
    return conv


def make_problem(
    conv: Conv2d, pattern: Pattern, density: float | None, epilogue: Epilogue, seed: int
) -> tuple[Problem, Any, Any]:
    rng = np.random.default_rng(seed)
    shape = (conv.out_channels, conv.group_in, *conv.kernel)
    weight = project(rng.standard_normal(shape, dtype=np.float32), pattern, density)
    bias = rng.standard_normal(conv.out_channels, dtype=np.float32) if epilogue.bias else None
    kept = float(np.count_nonzero(weight)) / weight.size
    problem = Problem(conv, epilogue, weight, bias, Detection(pattern, (pattern,), kept))
    x = rng.standard_normal((conv.batch, conv.in_channels, conv.in_height, conv.in_width))
    out = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
    residual = rng.standard_normal(out, dtype=np.float32) if epilogue.residual else None
    return problem, x.astype(np.float32), residual


@st.composite
def winograd_convolutions(draw: st.DrawFn) -> Conv2d:
    """What Winograd's method is for, with any padding."""
    size, stride = draw(st.sampled_from([(3, 1), (3, 1), (5, 1), (5, 2), (7, 2)]))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    conv = Conv2d(
        batch=draw(st.sampled_from([1, 1, 2, 5])),
        in_channels=draw(st.integers(8, 40)),
        in_height=draw(st.integers(1, 20)),
        in_width=draw(st.sampled_from([1, 5, 7, 14, 16, 17, 23, 33])),
        out_channels=draw(st.integers(8, 40)),
        kernel=(size, size),
        stride=(stride, stride),
        padding=(padding[0], padding[1], padding[2], padding[3]),
    )
    assume(conv.out_height > 0 and conv.out_width > 0)
    return conv


def geometries(kernel: Kernel) -> st.SearchStrategy[Conv2d]:
    """Convolutions that a row takes."""
    if "winograd" in kernel.name:
        return winograd_convolutions()
    return convolutions("depthwise" in kernel.name)


@examples(4, 60)
@given(
    window=st.sampled_from([((8, 9), (2, 1), (3, 2)), ((9, 7), (1, 4), (4, 3)),
                            ((9, 9), (1, 1), (0, 0)), ((11, 11), (4, 4), (2, 2)),
                            ((10, 10), (10, 10), (0, 0))]),
    dilation=st.sampled_from([(1, 1), (2, 1), (3, 2)]),
    pattern=st.sampled_from([Dense(), OneByN(4), NM(2, 4)]),
)  # fmt: skip
def test_windows_too_large_to_be_written_out(
    window: Any, dilation: tuple[int, int], pattern: Pattern
) -> None:
    kernel, stride, padding = window
    down, right = padding
    conv = Conv2d(1, 8, 41, 39, 8, kernel, stride, (down, right, down, right), dilation)
    density = 0.5 if isinstance(pattern, OneByN) else None
    problem, x, residual = make_problem(conv, pattern, density, Epilogue(bias=True), 0)
    row = next(
        row for row in CONVOLUTIONS if row.refuse(problem) is None and "winograd" not in row.name
    )
    found = run_kernel(row, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < tolerance_of(row)


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda kernel: kernel.name)
@examples(3, 50)
@given(data=st.data())
def test_convolution_agrees_with_float64(kernel: Kernel, data: st.DataObject) -> None:
    conv = data.draw(geometries(kernel))
    pattern, density = data.draw(st.sampled_from(patterns_of(kernel)))
    # The other activations have a test of their own: they change the range that errors are
    # compared with.
    epilogue = data.draw(epilogues(["none", "relu"]))
    problem, x, residual = make_problem(conv, pattern, density, epilogue, data.draw(st.integers(0)))
    assert kernel.refuse(problem) is None
    found = run_kernel(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < tolerance_of(kernel)


def winograd_row(pattern: Pattern) -> Kernel:
    name = "winograd_one_by_n" if isinstance(pattern, OneByN) else "winograd"
    return next(row for row in CONVOLUTIONS if row.name.startswith(f"conv2d_f32_{name}__"))


@pytest.mark.parametrize(
    ("conv", "pattern"),
    [
        # A stem.
        pytest.param(
            Conv2d(1, 3, 97, 131, 32, (7, 7), (2, 2), (3, 3, 3, 3)), Dense(), marks=pytest.mark.long
        ),
        # Rows of more than 16 and 32 tiles, and blocks of which the last one sticks out.
        (Conv2d(1, 9, 13, 150, 24, (3, 3), padding=(1, 1, 1, 1)), Dense()),
        (Conv2d(1, 20, 30, 70, 32, (3, 3), padding=(0, 2, 1, 0)), OneByN(16)),
        # Several images in a block, the last block with fewer; lists that stick out.
        (Conv2d(7, 16, 7, 7, 40, (3, 3), padding=(1, 1, 1, 1)), OneByN(16)),
        (Conv2d(5, 12, 9, 6, 21, (3, 3), padding=(1, 1, 1, 1)), Dense()),
    ],
)
def test_winograd_blocks_agree_with_float64(conv: Conv2d, pattern: Pattern) -> None:
    epilogue = Epilogue(True, True, Activation("silu"), in_place=True)
    density = 0.4 if isinstance(pattern, OneByN) else None
    problem, x, residual = make_problem(conv, pattern, density, epilogue, 0)
    kernel = winograd_row(pattern)
    configs = [c.config for c in kernel.configs(problem)]
    ways: dict[tuple[Any, ...], Any] = {
        (c.side, c.rows, c.images, c.split_blocks): c for c in reversed(configs)
    }
    assert conv.batch == 1 or any(c.images > 1 for c in ways.values())
    expected = reference(problem, x, residual)
    for config in (ways if is_thorough() else covering(ways)).values():
        found = run_kernel(kernel, problem, x, residual, config)
        assert relative_error(found, expected) < tolerance_of(kernel), config


def covering(ways: dict[tuple[Any, ...], Any]) -> dict[tuple[Any, ...], Any]:
    """Few of the ways, so that every value that a field has in one of them is in these too."""
    chosen, left = {}, {value for way in ways for value in enumerate(way)}
    while left:
        way = max(ways, key=lambda way: len(left.intersection(enumerate(way))))
        chosen[way] = ways[way]
        left.difference_update(enumerate(way))
    return chosen


@pytest.mark.parametrize("outputs", [4, 8, 16])
def test_winograd_keeps_non_zeros_of_patterns_that_it_loses(outputs: int) -> None:
    conv = Conv2d(1, 24, 9, 9, 40, (3, 3), padding=(1, 1, 1, 1))
    problem, x, _ = make_problem(conv, NM(1, 4), None, Epilogue(), 0)
    kernel = winograd_row(Dense())
    configs = [c.config for c in kernel.configs(problem)]
    config = next(c for c in configs if c.outputs == outputs)
    arrays = kernel.lower(problem, config).arrays
    assert problem.weight is not None
    kept = np.count_nonzero(problem.weight)
    assert sum(array.nbytes for array in arrays.values()) < 4 * kept + 0.5 * problem.weight.size
    found = run_kernel(kernel, problem, x, None, config)
    assert relative_error(found, reference(problem, x, None)) < tolerance_of(kernel)


def test_winograd_refuses_windows_without_a_form() -> None:
    for conv in (
        Conv2d(1, 16, 9, 9, 16, (3, 3), (2, 2)),
        Conv2d(1, 16, 9, 9, 16, (3, 3), dilation=(2, 2)),
        Conv2d(1, 16, 9, 9, 16, (5, 3)),
        Conv2d(1, 16, 9, 9, 16, (3, 3), groups=2),
        Conv2d(1, 3, 9, 9, 16, (3, 3)),
    ):
        problem, _, _ = make_problem(conv, Dense(), None, Epilogue(), 0)
        assert winograd_row(Dense()).refuse(problem) is not None


def test_two_in_four_says_that_winograd_is_faster() -> None:
    conv = Conv2d(1, 64, 56, 56, 64, (3, 3), padding=(1, 1, 1, 1))
    problem, _, _ = make_problem(conv, NM(2, 4), None, Epilogue(), 0)
    choice = choose("conv2d", "avx512", problem)
    assert choice.kernel is winograd_row(Dense())
    assert "Winograd with all weights is faster" in choice.reason


@pytest.mark.parametrize(
    ("conv", "pattern", "density"),
    [
        # Panels larger than a cache, so that the channels are split in blocks.
        (Conv2d(1, 300, 7, 7, 40, (3, 3), padding=(1, 1, 1, 1)), OneByN(8), 0.5),
        (Conv2d(1, 1100, 7, 7, 36, (3, 3), padding=(1, 1, 1, 1)), OneByN(4), 0.5),
        (Conv2d(1, 500, 14, 14, 70, (1, 1)), NM(2, 4), None),
        (Conv2d(1, 1100, 7, 7, 20, (3, 3), padding=(1, 1, 1, 1)), Dense(), None),
        # Enough outputs to be split in chunks, and not a multiple of the lists.
        (Conv2d(1, 24, 7, 7, 600, (1, 1)), OneByN(16), 0.5),
        (Conv2d(1, 24, 7, 7, 602, (1, 1)), NM(2, 4), None),
        # Windows too large to be staged, with and without stride.
        (Conv2d(1, 3, 32, 33, 24, (16, 16), (16, 16)), Dense(), None),
        (Conv2d(2, 4, 12, 13, 16, (9, 8), padding=(4, 3, 4, 4)), NM(2, 4), None),
        # A stem.
        (Conv2d(1, 3, 65, 47, 33, (7, 7), (2, 2), (3, 3, 3, 3)), Dense(), None),
    ],
)
def test_large_convolution_agrees_with_float64(
    conv: Conv2d, pattern: Pattern, density: float | None
) -> None:
    epilogue = Epilogue(True, True, Activation("relu"))
    problem, x, residual = make_problem(conv, pattern, density, epilogue, 0)
    kernel = choose("conv2d", "avx512", problem).kernel
    found = run_kernel(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_activations_agree_with_float64(kind: str) -> None:
    conv = Conv2d(1, 3, 6, 5, 7, (3, 3), padding=(1, 1, 1, 1))
    epilogue = Epilogue(True, True, activation(kind), in_place=True)
    problem, x, residual = make_problem(conv, Dense(), None, epilogue, 0)
    # Far beyond where the activations saturate, on both sides.
    x *= 20
    kernel = choose("conv2d", "avx512", problem).kernel
    found = run_kernel(kernel, problem, x, residual)
    assert relative_error(found, reference(problem, x, residual)) < 1e-5


def test_weight_of_zeros_gives_the_bias() -> None:
    conv = Conv2d(1, 16, 9, 9, 32, (3, 3), padding=(1, 1, 1, 1))
    tried = set[str]()
    for pattern in (OneByN(16), NM(2, 4)):
        problem, x, _ = make_problem(conv, pattern, 0.5, Epilogue(bias=True), 0)
        assert problem.weight is not None
        problem.weight[...] = 0
        for kernel in CONVOLUTIONS:
            if kernel.name not in tried and kernel.refuse(problem) is None:
                tried.add(kernel.name)
                found = run_kernel(kernel, problem, x, None)
                assert relative_error(found, reference(problem, x, None)) < 1e-6
