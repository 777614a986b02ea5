"""Constants that are stored as integers and stand for real numbers, whatever the framework."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STORED = frozenset({"int8", "uint8", "int16", "uint16", "int32"})
"""Dtypes that stay integers up to the kernels; what is stored in others becomes float32."""

_ROUNDING = 1e-6
"""By how much a product of two float32 numbers may be off, relative to itself, and some more."""


@dataclass(frozen=True, eq=False)
class QuantisedConstant:
    """real = (values - zero) * scale, in float32.

    values: as they are stored, of a dtype in `STORED`.
    scale: float32; one number, or one for each slice along `axis`.
    zero: as scale, of the dtype of the values.
    axis: counted from the front.
    """

    values: Array
    scale: Array
    zero: Array
    axis: int = 0

    @property
    def whole(self) -> Array:
        """The values less their zero point, int64: zero where the number is."""
        return self.values.astype(np.int64) - self._spread(self.zero).astype(np.int64)

    @cached_property
    def real(self) -> Array:
        """What the values stand for, as ONNX, torch and TVM compute it; not to be written to."""
        counted = self.values.astype(np.int32) - self._spread(self.zero).astype(np.int32)
        # A product of arrays without axes is no array.
        real = np.asarray(counted.astype(np.float32) * self._spread(self.scale))
        real.flags.writeable = False
        return real

    @property
    def per_slice(self) -> bool:
        """Whether slices along the axis have their own scale or zero point."""
        return max(self.scale.size, self.zero.size) > 1

    def transposed(self, order: Sequence[int]) -> QuantisedConstant | None:
        """The same numbers with their axes in another order; None where it is none of them."""
        if sorted(order) != list(range(self.values.ndim)):
            return None
        axis = list(order).index(self.axis) if self.per_slice else 0
        return replace(self, values=self.values.transpose(order), axis=axis)

    def reshaped(self, shape: Sequence[int]) -> QuantisedConstant | None:
        """The same numbers in another shape; None where the slices do not lie along one axis."""
        if math.prod(shape) != self.values.size:
            return None
        values = self.values.reshape(shape)
        if not self.per_slice:
            return replace(self, values=values, axis=0)
        before, extent = math.prod(self.values.shape[: self.axis]), self.values.shape[self.axis]
        for axis, found in enumerate(values.shape):
            if found == extent and math.prod(values.shape[:axis]) == before:
                return replace(self, values=values, axis=axis)
        return None

    def reordered(self, axis: int, order: Array) -> QuantisedConstant:
        """Slice i along an axis becomes the former slice order[i]."""
        changed = replace(self, values=np.take(self.values, order, axis))
        if axis % self.values.ndim != self.axis:
            return changed
        scale, zero = (a if a.size == 1 else np.take(a, order) for a in (self.scale, self.zero))
        return replace(changed, scale=scale, zero=zero)

    def holding(self, real: Array) -> QuantisedConstant | None:
        """Integers that stand for other numbers of the same shape; None if there are none.

        1. The numbers are multiples of the scale: the integers change, as when some become zero.
        2. Each slice along the first axis is a positive multiple of what it was, up to float32's
           rounding: the scale changes, as when a batch norm is folded. The zero point is 0.
        """
        info = np.iinfo(self.values.dtype)
        spread = np.asarray(self._spread(self.scale), np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.rint(np.asarray(real, np.float64) / spread)
        whole = np.nan_to_num(steps) + self._spread(self.zero)
        if whole.size and info.min <= whole.min() and whole.max() <= info.max:
            same = replace(self, values=whole.astype(self.values.dtype))
            if np.array_equal(same.real, np.asarray(real, np.float32)):
                return same
        if self.zero.any() or real.ndim < 2:
            return None
        before = self.whole.reshape(len(real), -1).astype(np.float64)
        after = np.asarray(real, np.float64).reshape(len(real), -1)
        squares = (before * before).sum(1)
        scale = np.where(squares > 0, (before * after).sum(1) / np.maximum(squares, 1), 1.0)
        if not np.allclose(before * scale[:, None], after, rtol=_ROUNDING, atol=0):
            return None
        if not (scale > 0).all():
            return None
        zero = np.zeros(len(real), self.values.dtype)
        return QuantisedConstant(self.values, scale.astype(np.float32), zero, axis=0)

    def _spread(self, numbers: Array) -> Array:
        """One number for all, or shaped so that it broadcasts along the axis."""
        if numbers.size == 1:
            return numbers.reshape(())
        return numbers.reshape([-1 if k == self.axis else 1 for k in range(self.values.ndim)])
