"""The numbers of an integer kernel from what the values of its group mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.catalog import CATALOG
from nmcompile.kernels.integers import Integers, Residual, Rounding
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Activation
from nmcompile.passes.lowering.integers.group import IntegerGroup
from nmcompile.passes.lowering.integers.values import Quantisation

Array = npt.NDArray[Any]
LIMITS = ("none", "relu", "clip")
"""Activations that are limits of a rounded value."""

MAX_SUM = 2**31 - 1
MAX_STEPS = 2.0**30  # of a value before it is rounded: what the conversion to int32 can hold


def settle(group: IntegerGroup) -> bool:
    """Give a group its `integers`; says whether they can be computed as `Integers` promises.

    They cannot where a sum may leave int32, or a value the range that is rounded.
    """
    if group.source is None:
        assert group.target is not None
        step_of = np.array([group.target.scale], np.float32)
        group.integers = Integers(0, step_of, zero=group.target.zero)
        return True
    target = group.target
    limited = target is not None and group.activation.kind in LIMITS
    step = target.scale if target is not None and limited else 1.0  # what v counts
    unit = _unit(group, group.source)
    offset = _offset(group, unit)
    if offset is None:
        return False
    first = step if group.middle is None else group.middle.scale
    scale = unit / first
    middle = None if group.middle is None else _middle(group, group.middle, step)
    added = group.added
    residual = None if added is None else Residual(added.zero, added.scale / step)
    if group.adds_real:
        residual = Residual(0, 1.0, real=True)
    late = None if group.late_bias is None else (group.late_bias / step).astype(np.float32)
    factor = 1.0 if target is None or limited else 1.0 / target.scale
    sums = _largest_sums(group, offset)
    if sums.max() > MAX_SUM or (sums * scale).max() >= MAX_STEPS:
        return False
    largest = _largest(float((sums * scale).max()), middle, late, residual)
    if not largest * factor < MAX_STEPS:
        return False
    low, high = (0, 255) if target is None else _limits(target, group.activation, limited)
    group.integers = Integers(
        x_zero=group.source.zero,
        scale=scale.astype(np.float32),
        offset=offset if offset.size else None,
        middle=middle,
        late_bias=late,
        residual=residual,
        activation=Activation() if limited else group.activation,
        factor=factor,
        out="float32" if target is None else "uint8",
        zero=0 if target is None else target.zero,
        low=low,
        high=high,
    )
    return True


def _unit(group: IntegerGroup, source: Quantisation) -> Array:
    """What one unit of the sum stands for, float64, of each output or of all."""
    if group.weights is None:
        # A gate's product has the unit of both.
        other = group.added.scale if group.op == "gate" and group.added is not None else 1.0
        return np.array([source.scale * other], np.float64)
    outputs = group.weights.values.shape[0 if group.op == "conv2d" else 1]
    scale = group.weights.scale.astype(np.float64).reshape(-1)
    return np.asarray(source.scale * np.broadcast_to(scale, (outputs,)))


def _offset(group: IntegerGroup, unit: Array) -> Array | None:
    """The bias in units of the sum, int32; empty for none, None where it does not fit."""
    if group.bias is None:
        return np.zeros(0, np.int32)
    whole = np.rint(group.bias.astype(np.float64) / unit)
    if not np.isfinite(whole).all() or np.abs(whole).max() > MAX_SUM:
        return None
    return np.asarray(whole, np.int32)


def _largest_sums(group: IntegerGroup, offset: Array) -> Array:
    """The largest magnitude of each output's sum, or of all."""
    if group.weight is None:
        # A gate multiplies two bytes; means and sums of bytes are smaller.
        return np.array([255 * 255])
    weight = group.weight.reshape(group.weight.shape[0], -1).astype(np.int64)
    total = np.abs(weight).sum(1) * 255
    return np.asarray(total + np.abs(offset.astype(np.int64)) if offset.size else total)


def _largest(
    value: float, middle: Rounding | None, late: Array | None, residual: Residual | None
) -> float:
    """The largest magnitude of what is rounded last, where sums count up to `value`.

    Activations make numbers no larger than they are, or than one.
    """
    if middle is not None:
        value = max(-middle.low, middle.high) * middle.factor
    if late is not None:
        value += float(np.abs(late).max())
    if residual is not None:
        value += 255 * residual.factor
    return max(value, 1.0)


def _middle(group: IntegerGroup, middle: Quantisation, step: float) -> Rounding:
    low, high = _limits(middle, group.middle_activation, True)
    return Rounding(low - middle.zero, high - middle.zero, middle.scale / step)


def _limits(meaning: Quantisation, activation: Activation, limited: bool) -> tuple[int, int]:
    """The lowest and the highest stored value that an activation leaves."""
    low, high = -math.inf, math.inf
    if limited and activation.kind == "relu":
        low = 0.0
    elif limited and activation.kind == "clip":
        low, high = activation.low, activation.high
    lowest, highest = meaning.stored([low, high]).tolist()
    return lowest, highest


def signed_weight(group: IntegerGroup) -> npt.NDArray[np.int8] | None:
    """The weight as s8 with zero point 0, outputs first; None where it does not fit."""
    weights = group.weights
    assert weights is not None
    whole, outputs = weights.whole, 0 if group.op == "conv2d" else 1
    if weights.scale.size > 1 and weights.axis != outputs:
        return None
    if whole.max(initial=0) > 127 or whole.min(initial=0) < -128:
        return None
    return np.ascontiguousarray(whole if group.op == "conv2d" else whole.T, np.int8)


def runs(group: IntegerGroup) -> bool:
    """Whether a kernel computes a group that is found whole."""
    return settle(group) and has_kernel(group)


def has_kernel(group: IntegerGroup) -> bool:
    """Weights of any kind have one."""
    problem = Problem(group.spec, dtype="int8", integers=group.integers)
    rows = [row for row in CATALOG if (row.op, row.dtype) == (group.op, "int8")]
    return group.weight is not None or any(row.refuse(problem) is None for row in rows)
