"""The kernel of attention on random shapes and layouts, against float64."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.kernels.spec import Attention, Mask, Strides
from tests.support.examples import examples
from tests.support.kernel_runner import relative_error, run_operands

Floats = npt.NDArray[np.float32]
TOKENS = [1, 3, 6, 7, 16, 49, 50, 130, 197, 300]  # one block of keys or several, with rests
SIZES = [1, 8, 16, 20, 32, 48, 64, 80, 96, 128]
# Of a tensor with axes batch, token, part (q, k or v), head, feature: where the parts lie.
ORDERS = {"fused": "btphf", "heads": "pbhtf", "turned": "pbhft", "tokens": "pbthf"}


def strides(view: npt.NDArray[np.float32], whole: npt.NDArray[np.float32]) -> Strides:
    """Where a view (batch, head, token, feature) lies in the first operand."""
    offset = (view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 4
    *lead, token, feature = (step // 4 for step in view.strides)
    return Strides(0, offset, tuple(lead), token, feature)


def reference(
    q: Floats, k: Floats, v: Floats, scale: float, masks: list[tuple[Floats, bool]], zero: bool
) -> npt.NDArray[np.float64]:
    scores = np.einsum("bhqd,bhkd->bhqk", q.astype(np.float64), k.astype(np.float64)) * scale
    for mask, hides in masks:
        scores = np.where(mask < 0, mask, scores) if hides else scores + mask
    with np.errstate(invalid="ignore", divide="ignore"):
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - top)
        weights /= weights.sum(-1, keepdims=True)
    if zero:
        weights = np.where(top == -np.inf, 0.0, weights)
    result: npt.NDArray[np.float64] = np.einsum("bhqk,bhkd->bhqd", weights, v)
    return result


@examples(10, 250)
@given(data=st.data())
def test_attention_agrees_with_float64(data: st.DataObject) -> None:
    draw = data.draw
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    share = draw(st.sampled_from([n for n in (1, 2, 3) if heads % n == 0]))
    queries, keys = draw(st.sampled_from(TOKENS)), draw(st.sampled_from(TOKENS))
    size, value_size = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    random = np.random.default_rng(draw(st.integers(0)))
    order = ORDERS[draw(st.sampled_from(list(ORDERS)))]
    tokens, features = max(queries, keys), max(size, value_size)
    extents = {"b": batch, "t": tokens, "p": 3, "h": heads, "f": features}
    whole = random.standard_normal([extents[axis] for axis in order], dtype=np.float32)
    parts = whole.transpose([order.index(axis) for axis in "pbhtf"])
    shapes = ((queries, size), (keys, size), (keys, value_size))
    q, k, v = (
        part[:, :, :count, :width] for part, (count, width) in zip(parts, shapes, strict=True)
    )
    # Heads that share keys and values read those of the first of them.
    lead = (batch, heads // share, share)

    def parted(x: Floats, shared: bool = False) -> Floats:
        apart = x.reshape(*lead, *x.shape[2:])
        return np.broadcast_to(apart[:, :, :1], apart.shape) if shared else apart

    places = (
        strides(parted(q), whole), strides(parted(k, True), whole), strides(parted(v, True), whole)
    )  # fmt: skip
    k, v = (x[:, ::share].repeat(share, 1) for x in (k, v))
    operands, masks, given_masks = [whole], list[Mask](), list[tuple[Floats, bool]]()
    for _ in range(draw(st.integers(0, 2))):
        kept = [draw(st.booleans()) for _ in range(4)]
        full = (batch, heads, queries, keys)
        shape = [extent if keep else 1 for extent, keep in zip(full, kept, strict=True)]
        mask, hides = random.standard_normal(shape, dtype=np.float32), draw(st.booleans())
        if hides:
            mask = np.where(mask < 0, np.float32(draw(st.sampled_from([-np.inf, -30.0]))), 0)
            mask = mask.astype(np.float32)
        spread = np.broadcast_to(mask, full)
        where = strides(parted(spread), mask)
        masks.append(Mask(replace(where, operand=len(operands)), hides))
        operands.append(mask)
        given_masks.append((spread, hides))
    out_order = draw(st.sampled_from(["bthf", "bhft"]))
    out_extents = {**extents, "t": queries, "f": value_size}
    out = np.empty([out_extents[axis] for axis in out_order], np.float32)
    result = out.transpose([out_order.index(axis) for axis in "bhtf"])
    scale, zero = draw(st.sampled_from([1.0, size**-0.5])), draw(st.booleans())
    spec = Attention(
        lead, queries, keys, size, value_size, scale,
        tuple(operand.shape for operand in operands), *places, strides(parted(result), out),
        out.shape, tuple(masks), zero,
    )  # fmt: skip
    found = run_operands("attention", spec, operands, out.shape)
    expected = reference(q, k, v, scale, given_masks, zero)
    expected = expected.transpose(["bhtf".index(axis) for axis in out_order])
    assert (np.isnan(found) == np.isnan(expected)).all()
    assert relative_error(np.nan_to_num(found), np.nan_to_num(expected)) < 2e-5


def simple(q: Floats, k: Floats, v: Floats, mask: Floats, zero: bool) -> Floats:
    """Attention of one head: (tokens, features) each."""
    (queries, size), (keys, value_size) = q.shape, v.shape
    operands = (q, k, v, mask)
    lie = [Strides(place, 0, (), operand.shape[1], 1) for place, operand in enumerate(operands)]
    spec = Attention(
        (), queries, keys, size, value_size, 1.0, tuple(operand.shape for operand in operands),
        lie[0], lie[1], lie[2], Strides(0, 0, (), value_size, 1), (queries, value_size),
        (Mask(lie[3]),), zero,
    )  # fmt: skip
    return run_operands("attention", spec, operands, (queries, value_size))


def simple_reference(
    q: Floats, k: Floats, v: Floats, mask: Floats, zero: bool
) -> npt.NDArray[np.float64]:
    q, k, v = (x[None, None] for x in (q, k, v))
    result: npt.NDArray[np.float64] = reference(q, k, v, 1.0, [(mask, False)], zero)[0, 0]
    return result


@pytest.mark.parametrize("keys", [40, 300])
@pytest.mark.parametrize("zero", [False, True])
def test_what_is_no_number_comes_through_as_in_float64(keys: int, zero: bool) -> None:
    random = np.random.default_rng(keys)
    q, k, v = (random.standard_normal((n, 24), dtype=np.float32) for n in (20, keys, keys))
    mask = np.zeros((20, keys), np.float32)
    mask[1] = -np.inf  # sees nothing
    mask[2, :200] = -np.inf  # nothing in the first block
    mask[3, 20:] = -np.inf  # nothing in later ones
    mask[4, 7], mask[5, -1] = np.inf, np.inf
    mask[6, 3] = np.nan
    q[7] = np.nan
    mask[8] = np.finfo(np.float32).min
    mask[9] = -np.inf
    mask[9, keys // 2] = 88.0
    found = simple(q, k, v, mask, zero)
    expected = simple_reference(q, k, v, mask, zero)
    assert np.isnan(found[1]).all() != zero
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


def test_a_value_of_nan_is_seen_by_whoever_looks_at_it() -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((n, 24), dtype=np.float32) for n in (20, 40, 40))
    v[3, 5], v[4, 6] = np.nan, np.inf
    mask = np.zeros((20, 40), np.float32)
    mask[2] = -np.inf
    found = simple(q, k, v, mask, zero=True)
    expected = simple_reference(q, k, v, mask, True)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert np.isnan(found[2, 5]) and found[2, 0] == 0 and math.isinf(found[0, 6])
