"""Integer kernels whose vectors run over channels, against numpy, torch and onnxruntime."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from nmcompile.kernels.catalog import choose, rows_for
from nmcompile.kernels.integers import Integers, Residual, Rounding
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import (
    Activation,
    Conv2d,
    Dequantise,
    Gate,
    GlobalAverage,
    Pool2d,
    Quantise,
    Sum,
    Table,
)
from tests.support.channel_peers import MICROSOFT, run_onnx, to_nchw, to_nhwc
from tests.support.channel_runner import Array, assert_agree, ended, run_integer
from tests.support.examples import examples

pytestmark = [pytest.mark.isa("avx512_vnni"), pytest.mark.isa("avx512vbmi")]

CHANNELS = st.sampled_from([1, 3, 8, 24, 32, 64, 72, 128, 144])
ZEROS = st.sampled_from([0, 1, 100, 128, 255])
COUNTS = st.sampled_from([1, 63, 64, 65, 4096, 20000])
SCALES = st.sampled_from([0.0517, 0.3013, 1.0, 1.7031])  # few of their multiples end on a half
OUTS = st.sampled_from(["uint8", "uint8", "uint8", "float32"])


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    """Zero point and limits of an output."""
    zero = draw(ZEROS)
    low, high = draw(st.sampled_from([(0, 255), (zero, 255), (3, 250), (0, 200)]))
    return {"zero": zero, "low": low, "high": high}


def step(value: Any) -> Array:
    return np.array([value], np.float32)


def u8(value: int) -> Array:
    return np.array(value, np.uint8)


def some_bytes(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@examples(3, 50)
@given(count=COUNTS, seed=st.integers(0))
def test_a_table_is_looked_up(count: int, seed: int) -> None:
    x, table = some_bytes((count,), seed), some_bytes((256,), seed + 1)
    problem = Problem(Table(count), weight=table, dtype="int8")
    assert_agree(run_integer("table", problem, x, x.shape), table[x])


@examples(6, 120)
@given(
    count=COUNTS, zeros=st.tuples(ZEROS, ZEROS), scales=st.tuples(SCALES, SCALES), ends=limits(),
    out=OUTS, activation=st.sampled_from(["none", "none", "hard_swish", "silu"]),
    in_place=st.booleans(), seed=st.integers(0),
)  # fmt: skip
def test_sums_are_those_of_the_formula(
    count: int, zeros: tuple[int, int], scales: tuple[float, float], ends: dict[str, Any],
    out: str, activation: str, in_place: bool, seed: int,
) -> None:  # fmt: skip
    x, residual = some_bytes((count,), seed), some_bytes((count,), seed + 1)
    integers = Integers(
        zeros[0], step(scales[0]), residual=Residual(zeros[1], scales[1]), out=out,  # type: ignore[arg-type]
        activation=Activation(activation), factor=0.7,  # type: ignore[arg-type]
        in_place=in_place and out == "uint8", **ends,
    )  # fmt: skip
    problem = Problem(Sum(count), dtype="int8", integers=integers)
    found = run_integer("sum", problem, x, x.shape, residual)
    expected = ended(x.astype(np.int64) - zeros[0], step(scales[0]), integers, residual)
    assert_agree(found, expected, exact=False)


def test_sums_agree_with_onnxruntime() -> None:
    x, residual = some_bytes((1, 24, 9, 9), 0), some_bytes((1, 24, 9, 9), 1)
    a, b, y = (np.float32(v) for v in (0.11, 0.07, 0.13))
    expected = run_onnx("QLinearAdd", [x, a, u8(3), residual, b, u8(130), y, u8(60)], MICROSOFT)
    integers = Integers(3, step(a / y), residual=Residual(130, float(b / y)), zero=60)
    problem = Problem(Sum(x.size), dtype="int8", integers=integers)
    found = run_integer("sum", problem, x.reshape(-1), (x.size,), residual.reshape(-1))
    assert_agree(found, expected.reshape(-1), exact=False)


@examples(5, 100)
@given(
    shape=st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 17, 49]), CHANNELS),
    zeros=st.tuples(ZEROS, ZEROS), ends=limits(), out=OUTS, seed=st.integers(0),
)  # fmt: skip
def test_products_with_a_gate_are_exact(
    shape: tuple[int, int, int], zeros: tuple[int, int], ends: dict[str, Any], out: str, seed: int
) -> None:
    x, gate = some_bytes(shape, seed), some_bytes((shape[0], shape[2]), seed + 1)
    integers = Integers(zeros[0], step(0.013), residual=Residual(zeros[1], 0.0), out=out, **ends)  # type: ignore[arg-type]
    problem = Problem(Gate(*shape), dtype="int8", integers=integers)
    found = run_integer("gate", problem, x, shape, gate)
    products = (x.astype(np.int64) - zeros[0]) * (gate[:, None].astype(np.int64) - zeros[1])
    assert_agree(found, ended(products, integers.scale, integers))


def test_a_gate_of_the_same_shape_agrees_with_onnxruntime() -> None:
    x, gate = some_bytes((1, 12000), 0), some_bytes((1, 12000), 1)
    a, b, y = (np.float32(v) for v in (0.02, 0.004, 0.006))
    expected = run_onnx("QLinearMul", [x, a, u8(90), gate, b, u8(0), y, u8(100)], MICROSOFT)
    integers = Integers(90, step(a * b / y), residual=Residual(0, 0.0), zero=100)
    problem = Problem(Gate(1, 1, 12000), dtype="int8", integers=integers)
    found = run_integer("gate", problem, x[None], (1, 1, 12000), gate)
    assert_agree(found[0], expected, exact=False)


SHAPES = st.sampled_from(
    [(1, 3, 32, 32), (2, 3, 9, 5), (1, 1, 3, 70), (1, 64, 7, 7), (2, 5, 3, 3), (1, 20, 5, 8),
     (2, 24, 9, 9), (1, 4, 9, 9), (2, 100, 1, 1), (1, 2, 5, 5), (1, 32, 16, 16), (1, 16, 4, 4)]
)  # fmt: skip


@examples(5, 100)
@given(shape=SHAPES, ends=limits(), seed=st.integers(0))
def test_real_numbers_are_quantised(
    shape: tuple[int, int, int, int], ends: dict[str, Any], seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal(shape, np.float32) * 20).astype(np.float32)
    halves = random.random(shape) < 0.2
    x[halves] = (np.rint(x[halves]) + 0.5) * np.float32(0.25)
    integers = Integers(0, step(0.25), **ends)
    problem = Problem(Quantise(*shape), dtype="int8", integers=integers)
    n, c, h, w = shape
    found = run_integer("quantise", problem, x, (n, h, w, c))
    expected = run_onnx("QuantizeLinear", [x, np.float32(0.25), u8(ends["zero"])])
    assert_agree(found, to_nhwc(expected.clip(ends["low"], ends["high"])))


@pytest.mark.parametrize("channels", [3, 20])
def test_what_is_no_number_of_steps_becomes_a_limit(channels: int) -> None:
    x = np.zeros((1, channels, 5, 8), np.float32)
    odd = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e12, -1e12, 3e9, -3e9]
    x.reshape(-1)[: len(odd)] = odd
    problem = Problem(Quantise(*x.shape), dtype="int8", integers=Integers(0, step(0.1), zero=7))
    found = to_nchw(run_integer("quantise", problem, x, (1, 5, 8, channels)))
    assert found.reshape(-1)[: len(odd)].tolist() == [0, 255, 0, 255, 0, 255, 0, 255, 0]
    assert_agree(found, run_onnx("QuantizeLinear", [x, np.float32(0.1), u8(7)]))


@examples(4, 80)
@given(shape=SHAPES, zero=ZEROS, scale=SCALES, seed=st.integers(0))
def test_bytes_become_real_numbers(
    shape: tuple[int, int, int, int], zero: int, scale: float, seed: int
) -> None:
    n, c, h, w = shape
    x = some_bytes((n, h, w, c), seed)
    integers = Integers(zero, step(scale), out="float32")
    problem = Problem(Dequantise(*shape), dtype="int8", integers=integers)
    found = run_integer("dequantise", problem, x, shape)
    expected = run_onnx("DequantizeLinear", [to_nchw(x), np.float32(scale), u8(zero)])
    assert np.array_equal(found, expected)


@examples(4, 80)
@given(
    batch=st.integers(1, 2), channels=CHANNELS, height=st.integers(1, 9), width=st.integers(1, 9),
    zero=ZEROS, scale=SCALES, ends=limits(), out=OUTS, seed=st.integers(0),
)  # fmt: skip
def test_means_over_all_pixels_are_exact(
    batch: int, channels: int, height: int, width: int, zero: int, scale: float,
    ends: dict[str, Any], out: str, seed: int,
) -> None:  # fmt: skip
    x = some_bytes((batch, height, width, channels), seed)
    integers = Integers(zero, step(scale), out=out, **ends)  # type: ignore[arg-type]
    shape = (batch, 1, 1, channels)
    spec = GlobalAverage(batch, channels, height, width, shape)
    problem = Problem(spec, dtype="int8", integers=integers)
    found = run_integer("global_average", problem, x, shape)
    sums = (x.astype(np.int64) - zero).sum((1, 2), keepdims=True)
    assert_agree(found, ended(sums, integers.scale / np.float32(height * width), integers))


def test_means_agree_with_onnxruntime() -> None:
    x = some_bytes((2, 7, 7, 72), 0)
    a, y = np.float32(0.11), np.float32(0.05)
    inputs = [to_nchw(x), a, u8(100), y, u8(30)]
    expected = run_onnx("QLinearGlobalAveragePool", inputs, MICROSOFT, channels_last=0)
    spec = GlobalAverage(2, 72, 7, 7, (2, 72))
    problem = Problem(spec, dtype="int8", integers=Integers(100, step(a / y), zero=30))
    found = run_integer("global_average", problem, x, (2, 72))
    assert_agree(found, expected[:, :, 0, 0], exact=False)


@st.composite
def pools(draw: st.DrawFn) -> Pool2d:
    """Windows of any shape, each with a pixel in it."""
    kernel = draw(st.sampled_from([(3, 3), (2, 2), (3, 2), (5, 5), (1, 3), (9, 2)]))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 2)]))
    top, left, bottom, right = (draw(st.integers(0, k // 2)) for k in (*kernel, *kernel))
    height, width = draw(st.integers(3, 17)), draw(st.integers(3, 17))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if dilation != (1, 1):  # where taps lie apart, a window may find padding only
        top = left = bottom = right = 0
        height, width = max(height, span[0]), max(width, span[1])
    rows = (height + top + bottom - span[0]) // stride[0] + 1
    columns = (width + left + right - span[1]) // stride[1] + 1
    assume(rows > 0 and columns > 0)
    return Pool2d(
        "max", draw(st.integers(1, 2)), draw(CHANNELS), height, width, rows, columns, kernel,
        stride, (top, left, bottom, right), dilation, draw(st.booleans()),
    )  # fmt: skip


def windows(pool: Pool2d, x: Array, fill: int) -> Array:
    """(batch, out height, out width, channels, kh, kw) of padded int64 input."""
    top, left, bottom, right = pool.padding
    padded = np.pad(
        x.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill
    )
    span = [d * (k - 1) + 1 for d, k in zip(pool.dilation, pool.kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))
    view = view[:, :: pool.stride[0], :: pool.stride[1], ..., :: pool.dilation[0], :]
    result: Array = view[..., :: pool.dilation[1]]
    return result


@examples(6, 120)
@given(pool=pools(), seed=st.integers(0))
def test_the_largest_of_a_window_is_found(pool: Pool2d, seed: int) -> None:
    x = some_bytes((pool.batch, pool.in_height, pool.in_width, pool.channels), seed)
    shape = (pool.batch, pool.out_height, pool.out_width, pool.channels)
    found = run_integer("pool2d", Problem(pool, dtype="int8"), x, shape)
    expected = run_onnx(
        "MaxPool", [to_nchw(x)], kernel_shape=pool.kernel, strides=pool.stride,
        pads=pool.padding, dilations=pool.dilation,
    )  # fmt: skip
    assert_agree(found, to_nhwc(expected))


@examples(6, 120)
@given(pool=pools(), zero=ZEROS, scale=SCALES, ends=limits(), out=OUTS, seed=st.integers(0))
def test_means_of_windows_are_exact(
    pool: Pool2d, zero: int, scale: float, ends: dict[str, Any], out: str, seed: int
) -> None:
    pool = dataclasses.replace(pool, kind="average")
    x = some_bytes((pool.batch, pool.in_height, pool.in_width, pool.channels), seed)
    integers = Integers(zero, step(scale), out=out, **ends)  # type: ignore[arg-type]
    sums = windows(pool, x.astype(np.int64) - zero, 0).sum((-1, -2))
    count = windows(pool, np.ones_like(x), int(pool.count_include_pad)).sum((-1, -2))
    found = run_integer(
        "pool2d", Problem(pool, dtype="int8", integers=integers), x, sums.shape
    )  # fmt: skip
    assert_agree(found, ended(sums, np.float32(scale) / count.astype(np.float32), integers))


@pytest.mark.parametrize("padded", [False, True])
def test_means_of_windows_agree_with_torch(padded: bool) -> None:
    x = some_bytes((1, 40, 40, 24), 0)
    data = torch.from_numpy(to_nchw(x).astype(np.float64)) - 100
    mean = functional.avg_pool2d(data, 20, 5, 6, count_include_pad=padded).numpy()
    expected = np.clip(np.rint(to_nhwc(mean) * 1.7) + 90, 0, 255).astype(np.uint8)
    pool = Pool2d(
        "average", 1, 24, 40, 40, expected.shape[1], expected.shape[2], (20, 20), (5, 5), (6,) * 4,
        count_include_pad=padded,
    )  # fmt: skip
    problem = Problem(pool, dtype="int8", integers=Integers(100, step(1.7), zero=90))
    assert_agree(run_integer("pool2d", problem, x, expected.shape), expected, exact=False)


@st.composite
def depthwise(draw: st.DrawFn) -> Conv2d:
    channels = draw(st.sampled_from([3, 8, 24, 32, 40, 64, 72, 144]))
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (5, 5), (1, 1), (3, 2), (7, 1), (4, 6)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (3, 2)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)]))
    top, left, bottom, right = (draw(st.integers(0, 3)) for _ in range(4))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (draw(st.integers(max(s, 3), s + 24)) for s in span)
    many = draw(st.sampled_from([1, 1, 1, 2, 4]))
    return Conv2d(
        draw(st.integers(1, 2)), channels, height, width, channels * many, kernel, stride,
        (top, left, bottom, right), dilation, channels,
    )  # fmt: skip


@examples(7, 140)
@given(
    conv=depthwise(), zero=ZEROS, ends=limits(), out=OUTS,
    more=st.sampled_from(["", "", "middle", "in_place", "silu"]), seed=st.integers(0),
)  # fmt: skip
def test_depthwise_sums_are_exact(
    conv: Conv2d, zero: int, ends: dict[str, Any], out: str, more: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = some_bytes((conv.batch, conv.in_height, conv.in_width, conv.in_channels), seed)
    weight = random.integers(-128, 128, (conv.out_channels, 1, *conv.kernel)).astype(np.int8)
    offset = random.integers(-5000, 5000, conv.out_channels).astype(np.int32)
    scale = (random.random(conv.out_channels) * 0.01 + 0.001).astype(np.float32)
    added = more in ("middle", "in_place")
    integers = Integers(
        zero, scale, offset, middle=Rounding(-100, 120, 0.6) if more == "middle" else None,
        residual=Residual(9, 0.37) if added else None, factor=3.1 if more == "silu" else 1.0,
        activation=Activation("silu" if more == "silu" else "none"),
        in_place=more == "in_place" and out == "uint8", out=out, **ends,  # type: ignore[arg-type]
    )  # fmt: skip
    top, left, bottom, right = conv.padding
    data = torch.from_numpy(to_nchw(x).astype(np.float64) - zero)
    sums = functional.conv2d(
        functional.pad(data, (left, right, top, bottom)),
        torch.from_numpy(weight.astype(np.float64)), torch.from_numpy(offset.astype(np.float64)),
        conv.stride, 0, conv.dilation, conv.groups,
    ).numpy()  # fmt: skip
    whole = to_nhwc(sums).astype(np.int64)
    residual = some_bytes(whole.shape, seed + 1) if added else None
    problem = Problem(conv, weight=weight, dtype="int8", integers=integers)
    found = run_integer("conv2d", problem, x, whole.shape, residual)
    assert_agree(found, ended(whole, scale, integers, residual), exact=not more)


def test_depthwise_agrees_with_onnxruntime() -> None:
    random = np.random.default_rng(0)
    x = some_bytes((1, 30, 28, 96), 0)
    weight = random.integers(-127, 128, (96, 1, 3, 3)).astype(np.int8)
    bias = random.integers(-3000, 3000, 96).astype(np.int32)
    steps = (random.random(96) * 0.01 + 0.001).astype(np.float32)
    a, y = np.float32(0.11), np.float32(0.09)
    inputs = [to_nchw(x), a, u8(100), weight, steps, np.zeros(96, np.int8), y, u8(30), bias]
    expected = run_onnx("QLinearConv", inputs, group=96, pads=[1] * 4, strides=[2, 2])
    conv = Conv2d(1, 96, 30, 28, 96, (3, 3), (2, 2), (1,) * 4, groups=96)
    integers = Integers(100, a * steps / y, bias, zero=30)
    problem = Problem(conv, weight=weight, dtype="int8", integers=integers)
    found = run_integer("conv2d", problem, x, (1, 15, 14, 96))
    assert_agree(found, to_nhwc(expected), exact=False)


def refusal(problem: Problem, op: str, name: str) -> str | None:
    (row,) = (row for row in rows_for(op, "avx512_vnni", "int8") if row.name.startswith(name))  # type: ignore[arg-type]
    return row.refuse(problem)


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "scale", "says"),
    [
        (8, 4, 3, 0.1, "made for depthwise convolutions, not 2 input channels per group"),
        (8, 8, 10, 0.1, "100 taps: the depthwise kernel writes out at most 81"),
        (24, 8, 3, 0.1, "3 outputs per channel"),
        (8, 8, 3, 1e8, "do not fit an int32"),
    ],
)
def test_depthwise_refuses_with_a_reason(
    channels: int, groups: int, kernel: int, scale: float, says: str
) -> None:
    conv = Conv2d(1, 8, 12, 12, channels, (kernel, kernel), groups=groups)
    weight = np.ones((channels, 8 // groups, kernel, kernel), np.int8)
    integers = Integers(0, np.full(channels, scale, np.float32))
    problem = Problem(conv, weight=weight, dtype="int8", integers=integers)
    assert says in (refusal(problem, "conv2d", "conv2d_i8_depthwise") or "")


def test_depthwise_convolutions_have_a_kernel_of_their_own() -> None:
    conv = Conv2d(1, 24, 9, 9, 24, (3, 3), groups=24)
    integers = Integers(0, np.full(24, 0.1, np.float32))
    weight = np.ones((24, 1, 3, 3), np.int8)
    problem = Problem(conv, weight=weight, dtype="int8", integers=integers)
    kernel = choose("conv2d", "avx512_vnni", problem).kernel
    assert kernel.name == "conv2d_i8_depthwise__avx512_vnni"


def test_a_window_of_padding_only_has_no_largest_value() -> None:
    pool = Pool2d("max", 1, 8, 4, 4, 6, 6, (2, 2), (1, 1), (2, 2, 1, 1))
    reason = refusal(Problem(pool, dtype="int8"), "pool2d", "pool2d_i8")
    assert reason is not None and "wholly in the padding" in reason


def test_a_product_is_not_written_over_its_gate() -> None:
    integers = Integers(0, step(0.1), residual=Residual(0, 0.0), in_place=True)
    problem = Problem(Gate(1, 4, 8), dtype="int8", integers=integers)
    assert "memory of its gate" in (refusal(problem, "gate", "gate_i8") or "")


def test_every_integer_operator_without_weights_has_a_row() -> None:
    for op in ("pool2d", "global_average", "quantise", "dequantise", "table", "sum", "gate"):
        assert [row.op for row in rows_for(op, "avx512_vnni", "int8")] == [op]
    problem = Problem(Table(64), weight=np.zeros(256, np.uint8), dtype="int8")
    assert choose("table", "avx512_vnni", problem).kernel.name == "table_i8__avx512_vnni"
