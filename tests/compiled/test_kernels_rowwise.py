"""Norms and softmax on random shapes, against torch in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nmcompile.kernels.spec import Elementwise, GroupNorm, LayerNorm, Positions, Softmax
from tests.support.examples import examples
from tests.support.kernel_runner import ACTIVATIONS, activation, run_operands

LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 49, 64, 80, 128, 197, 384, 1000])


@examples(15)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    features=LENGTHS,
    scale=st.booleans(),
    shift=st.booleans(),
    centred=st.booleans(),
    mean=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0),
)
def test_layer_norm_agrees_with_torch(
    shape: list[int],
    features: int,
    scale: bool,
    shift: bool,
    centred: bool,
    mean: float,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((*shape, features)) + mean).astype(np.float32)
    gamma, beta = random.standard_normal((2, features), dtype=np.float32)
    doubles = [torch.from_numpy(a).double() for a in (x, gamma, beta)]
    factor, summand = doubles[1] if scale else None, doubles[2] if shift else None
    if centred:
        normal = functional.layer_norm(doubles[0], (features,), factor, summand, 1e-3)
    else:
        normal = functional.rms_norm(doubles[0], (features,), factor, 1e-3)
        normal = normal if summand is None else normal + summand
    expected = normal.numpy()
    spec = LayerNorm(x.shape, features, 1e-3, scale, shift, centred)
    operands = [x, *([gamma] if scale else []), *([beta] if shift else [])]
    found = run_operands("layer_norm", spec, operands, x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@examples(15)
@given(
    batch=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 5]),
    channels=st.sampled_from([1, 2, 3]),
    pixels=st.sampled_from([(1,), (7, 7), (16,), (3, 5, 4), (50, 41), (99, 99)]),
    scale=st.booleans(),
    shift=st.booleans(),
    kind=st.sampled_from(["none", "relu", "silu", "clip"]),
    mean=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0),
)
def test_group_norm_agrees_with_torch(
    batch: int, groups: int, channels: int, pixels: tuple[int, ...], scale: bool, shift: bool,
    kind: str, mean: float, seed: int,
) -> None:  # fmt: skip
    random = np.random.default_rng(seed)
    shape = (batch, groups * channels, *pixels)
    x = (random.standard_normal(shape) + mean).astype(np.float32)
    gamma, beta = random.standard_normal((2, shape[1]), dtype=np.float32)
    doubles = [torch.from_numpy(a).double() for a in (x, gamma, beta)]
    factor, summand = doubles[1] if scale else None, doubles[2] if shift else None
    if math.prod(shape[1:]) == groups:  # torch normalises no single numbers
        expected = torch.zeros(shape).double() + (0 if summand is None else summand.reshape(-1, 1))
    else:
        expected = functional.group_norm(doubles[0], groups, factor, summand, 1e-3)
    spec = GroupNorm(shape, groups, 1e-3, scale, shift)
    operands = [x, *([gamma] if scale else []), *([beta] if shift else [])]
    found = run_operands("group_norm", spec, operands, shape, activation(kind))
    np.testing.assert_allclose(
        found, ACTIVATIONS[kind](expected).numpy(), rtol=1e-5, atol=2e-6 * max(1, mean)
    )


def test_the_moments_of_long_rows_are_exact() -> None:
    """Added up in one go, a million numbers around 100 lose three digits."""
    x = np.random.default_rng(0).standard_normal((1, 2, 700, 701), dtype=np.float32) + 100
    expected = functional.group_norm(torch.from_numpy(x).double(), 1).numpy()
    found = run_operands("group_norm", GroupNorm(x.shape, 1, 1e-5, False, False), [x], x.shape)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_group_norm_loses_groups_that_have_no_moments(value: float) -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 70, 71), dtype=np.float32)
    x[0, 1, 60, 3] = value
    found = run_operands("group_norm", GroupNorm(x.shape, 2, 1e-5, False, False), [x], x.shape)
    expected = functional.group_norm(torch.from_numpy(x).double(), 2).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[0, :2]).all() and not np.isnan(found[0, 2:]).any()


@examples(20)
@given(
    outer=st.integers(1, 5),
    length=LENGTHS,
    inner=st.sampled_from([1, 1, 2, 16, 63, 64, 65, 130]),
    spread=st.sampled_from([1.0, 40.0]),
    log=st.booleans(),
    seed=st.integers(0),
)
def test_softmax_agrees_with_torch(
    outer: int, length: int, inner: int, spread: float, log: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((outer, length, inner), dtype=np.float32) * np.float32(spread)
    given = torch.from_numpy(x).double()
    expected = (given.log_softmax(1) if log else given.softmax(1)).numpy()
    found = run_operands("softmax", Softmax(x.shape, outer, length, inner, log), [x], x.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 if log else 1e-12)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("length", "inner"), [(50, 1), (50, 3)])
def test_softmax_treats_what_is_no_number_as_torch_does(length: int, inner: int, log: bool) -> None:
    x = np.random.default_rng(0).standard_normal((6, length, inner), dtype=np.float32)
    x[0, 4], x[1, 5], x[2, 6], x[3] = np.nan, np.inf, -np.inf, -np.inf
    x[4, ::2] = -np.inf
    x[5] = np.finfo(np.float32).min
    given = torch.from_numpy(x).double()
    expected = (given.log_softmax(1) if log else given.softmax(1)).numpy()
    found = run_operands("softmax", Softmax(x.shape, 6, length, inner, log), [x], x.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 if log else 1e-12)
    assert math.isnan(found[0, 0, 0]) and found[2, 6, 0] == (-math.inf if log else 0)


@examples(15)
@given(
    outer=st.integers(1, 3),
    length=st.integers(1, 9),
    inner=st.sampled_from([16, 31, 64, 65, 130]),
    largest=st.booleans(),
    seed=st.integers(0),
)
def test_positions_are_those_of_torch(
    outer: int, length: int, inner: int, largest: bool, seed: int
) -> None:
    """Of the first one of several, and of the first NaN."""
    random = np.random.default_rng(seed)
    values = np.array([-np.inf, -1, -0.0, 0.0, 0.5, np.inf, np.nan], np.float32)
    x = random.choice(values, (outer, length, inner))
    given = torch.from_numpy(x)
    expected = (given.argmax(1) if largest else given.argmin(1)).numpy()
    spec = Positions(x.shape, (outer, inner), outer, length, inner, largest)
    found = run_operands("positions", spec, [x], (outer, inner), dtype=np.int64)
    np.testing.assert_array_equal(found, expected)


@examples(10)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 15, 16, 17, 40, 130]), min_size=1, max_size=3),
    kind=st.sampled_from(["gelu", "gelu_tanh"]),
    seed=st.integers(0),
)
def test_activations_of_tensors_agree_with_torch(shape: list[int], kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal(shape) * 4).astype(np.float32)
    x.flat[random.integers(x.size, size=2)] = (np.nan, np.inf)
    expected = ACTIVATIONS[kind](torch.from_numpy(x).double()).numpy()
    found = run_operands("activation", Elementwise(x.shape), [x], x.shape, activation(kind))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_gelu_is_as_exact_as_it_says() -> None:
    x = np.concatenate([np.linspace(-9, 9, 20001), [-1e30, 1e30, np.inf]]).astype(np.float32)
    expected = ACTIVATIONS["gelu"](torch.from_numpy(x).double()).numpy()
    found = run_operands("activation", Elementwise(x.shape), [x], x.shape, activation("gelu"))
    off = np.abs(found - expected)[:-1] / np.maximum(1, np.abs(x[:-1]))
    assert off.max() < 2.2e-7
    assert np.isinf(found[-1])
