"""Windows slid over images that take every path: borders, loops over rows and columns, copies."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nmcompile.kernels.catalog import choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Epilogue, Pool2d
from tests.support.examples import examples
from tests.support.kernel_runner import relative_error, run_kernel

SIZES = [5, 8, 14, 27, 33, 56, 65]  # shorter than a block of rows or a vector, up to four of them
KERNELS = [1, 2, 3, 5, 7]  # 7 x 7 reads a copy
STRIDES = [1, 1, 2, 3, 6]  # 6 too


@examples(7, 100)
@given(data=st.data())
def test_depthwise_of_any_size_agrees_with_float64(data: st.DataObject) -> None:
    draw = data.draw
    channels = draw(st.integers(2, 3))
    height, width = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    kernel = (draw(st.sampled_from(KERNELS)), draw(st.sampled_from(KERNELS)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 3)]))
    top, left = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    bottom, right = top + draw(st.integers(0, 1)), left + draw(st.integers(0, 9))
    stride = (draw(st.sampled_from(STRIDES)), draw(st.sampled_from(STRIDES)))
    conv = Conv2d(
        1, channels, height, width, channels * draw(st.integers(1, 2)), kernel, stride,
        (top, left, bottom, right), dilation, channels,
    )  # fmt: skip
    if conv.out_height < 1 or conv.out_width < 1:
        return
    random = np.random.default_rng(draw(st.integers(0)))
    x = random.standard_normal((1, channels, height, width), dtype=np.float32)
    weight = random.standard_normal((conv.out_channels, 1, *kernel), dtype=np.float32)
    bias = random.standard_normal(conv.out_channels, dtype=np.float32)
    padded = functional.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    expected = functional.conv2d(
        padded, torch.from_numpy(weight).double(), torch.from_numpy(bias).double(), stride, 0,
        dilation, channels,
    )  # fmt: skip
    problem = Problem(conv, Epilogue(bias=True), weight, bias)
    found = run_kernel(choose("conv2d", "avx512", problem).kernel, problem, x, None)
    assert relative_error(found, expected.numpy()) < 1e-6


@examples(5, 60)
@given(
    maximum=st.booleans(),
    height=st.sampled_from(SIZES),
    width=st.sampled_from(SIZES),
    kernel=st.sampled_from([2, 3, 5]),
    stride=st.sampled_from(STRIDES),
    negative=st.booleans(),
)
def test_pooling_of_any_size_agrees_with_torch(
    maximum: bool, height: int, width: int, kernel: int, stride: int, negative: bool
) -> None:
    x = np.random.default_rng(height).standard_normal((1, 2, height, width), dtype=np.float32)
    if negative:
        x = -np.abs(x)  # borders of zeros would win
    data, pad = torch.from_numpy(x).double(), kernel // 2
    if maximum:
        expected = functional.max_pool2d(data, kernel, stride, pad)
    else:
        expected = functional.avg_pool2d(data, kernel, stride, pad, count_include_pad=False)
    spec = Pool2d(
        "max" if maximum else "average", 1, 2, height, width, expected.shape[2], expected.shape[3],
        (kernel, kernel), (stride, stride), (pad,) * 4,
    )  # fmt: skip
    problem = Problem(spec)
    found = run_kernel(choose("pool2d", "avx512", problem).kernel, problem, x, None)
    assert relative_error(found, expected.numpy()) < 1e-6
