"""Pooling rows on random shapes, against torch."""

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from nmcompile.kernels.catalog import choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import GlobalAverage, Pool2d
from tests.support.examples import examples
from tests.support.kernel_runner import relative_error, run_kernel


@examples(10, 200)
@given(
    maximum=st.booleans(),
    batch=st.integers(1, 2),
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.booleans(),
    count_pad=st.booleans(),
    seed=st.integers(0),
)
def test_pooling_agrees_with_torch(
    maximum: bool,
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    ceil: bool,
    count_pad: bool,
    seed: int,
) -> None:
    assume(all(p <= k // 2 for p, k in zip(pad, kernel, strict=True)))
    assume(all(s + 2 * p >= k for s, p, k in zip(size, pad, kernel, strict=True)))
    x = np.random.default_rng(seed).standard_normal((batch, channels, *size), dtype=np.float32)
    data = torch.from_numpy(x).double()
    if maximum:
        expected = functional.max_pool2d(data, kernel, stride, pad, ceil_mode=ceil)
    else:
        expected = functional.avg_pool2d(data, kernel, stride, pad, ceil, count_pad)
    spec = Pool2d(
        "max" if maximum else "average",
        batch,
        channels,
        *size,
        out_height=expected.shape[2],
        out_width=expected.shape[3],
        kernel=kernel,
        stride=stride,
        padding=(*pad, *pad),
        count_include_pad=count_pad,
    )
    problem = Problem(spec)
    found = run_kernel(choose("pool2d", "avx512", problem).kernel, problem, x, None)
    assert relative_error(found, expected.numpy()) < 1e-6


@examples(5, 80)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 33),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    keep=st.booleans(),
    seed=st.integers(0),
)
def test_global_average_agrees_with_numpy(
    batch: int, channels: int, height: int, width: int, keep: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    # Of one sign per plane: where a sum cancels out, its rounding has no bound relative to it.
    signs = random.choice(np.array([-1, 1], np.float32), (batch, channels, 1, 1))
    x = signs * (0.5 + random.random((batch, channels, height, width), dtype=np.float32))
    expected = x.mean(axis=(2, 3), keepdims=keep, dtype=np.float64)
    problem = Problem(GlobalAverage(batch, channels, height, width, expected.shape))
    kernel = choose("global_average", "avx512", problem).kernel
    found = run_kernel(kernel, problem, x, None)
    assert relative_error(found, expected) < 1e-6
