"""The numbers of an integer kernel from what the values of its group mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.integers import Integers, Residual, Rounding
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
    if not _fits(group, scale, offset):
        return False
    low, high = (0, 255) if target is None else _limits(target, group.activation, limited)
    group.integers = Integers(
        x_zero=group.source.zero,
        scale=scale.astype(np.float32),
        offset=offset if offset.size else None,
        middle=None if group.middle is None else _middle(group, group.middle, step),
        residual=None
        if group.added is None
        else Residual(group.added.zero, group.added.scale / step),
        activation=Activation() if limited else group.activation,
        factor=1.0 if target is None or limited else 1.0 / target.scale,
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


def _fits(group: IntegerGroup, scale: Array, offset: Array) -> bool:
    """Whether neither a sum nor what is rounded can overflow."""
    if group.weight is None:
        return bool(scale.max() * 255 * 255 < MAX_STEPS)
    total = np.abs(group.weight.reshape(group.weight.shape[0], -1).astype(np.int64)).sum(1) * 255
    if offset.size:
        total = total + np.abs(offset.astype(np.int64))
    return bool(total.max() <= MAX_SUM and (total * scale).max() < MAX_STEPS)


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

    def stored(value: float, otherwise: int) -> int:
        return otherwise if math.isinf(value) else min(max(meaning.round(value), 0), 255)

    return stored(low, 0), stored(high, 255)
