"""Numbers that integers stand for, in place of an operator that works on the integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.operators.onnx.rewriting import Reason, Rewriting

PER_SLICE = 13
"""The operator set from which on a DequantizeLinear has an axis."""
LATER_OPSET = 21
"""That from which on quantisation takes the dtypes of `LATER`."""
LATER = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(frozen=True, eq=False)
class Steps:
    """A scale and a zero point, constants: real = (q - zero) * scale."""

    scale: Array
    zero: Array

    @property
    def single(self) -> bool:
        """Whether they are the same for the whole tensor."""
        return self.scale.size == 1 and self.zero.size == 1

    def spread(self, extent: int) -> Steps:
        """One of each for every slice along an axis."""
        scale, zero = (np.broadcast_to(a.reshape(-1), (extent,)) for a in (self.scale, self.zero))
        return Steps(scale, zero)


class IntegerRewriting(Rewriting):
    """New nodes over real numbers, with dequantisations before and a quantisation behind."""

    def steps(self, scale: int, zero: int, name: str, dtype: Any = None) -> Steps:
        """The scale and zero point at two places among the inputs.

        Args:
            scale: place of the scale, which has to be there.
            zero: place of the zero point.
            name: of what they belong to.
            dtype: of a zero point that is left out.
        """
        found, point = self.known(scale, f"{name} scale"), self.known(zero, f"{name} zero point")
        if found is None or (point is None and dtype is None):
            raise Reason(f"its {name} has no {'scale' if found is None else 'zero point'}")
        if found.dtype != np.float32:
            raise Reason(f"its {name} scale is {found.dtype}, not float32")
        steps = Steps(found, np.zeros((), dtype) if point is None else point)
        if steps.zero.size not in (1, found.size) and found.size != 1:
            raise Reason(f"its {name} has {found.size} scales and {steps.zero.size} zero points")
        return steps

    def single_steps(self, scale: int, zero: int, name: str, dtype: Any = None) -> Steps:
        """As `steps`, one of each for the whole tensor."""
        found = self.steps(scale, zero, name, dtype)
        if not found.single:
            raise Reason(f"its {name} has a scale for each of several slices")
        return Steps(found.scale.reshape(()), found.zero.reshape(()))

    def dequantise(self, value: ir.Value, steps: Steps, axis: int = 0) -> ir.Value:
        """What integers stand for; per slice along the axis where the steps are."""
        given = {}
        if not steps.single:
            self.expect_opset(PER_SLICE, "it has several scales")
            steps = steps.spread(max(steps.scale.size, steps.zero.size))
            given["axis"] = axis
        inputs = (value, self.constant(steps.scale), self.constant(steps.zero))
        real = self.add("DequantizeLinear", *inputs, **given)
        real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        return real

    def quantise(self, real: ir.Value, steps: Steps) -> ir.Value:
        """The integers that stand for real numbers."""
        whole = self.add(
            "QuantizeLinear", real, self.constant(steps.scale), self.constant(steps.zero)
        )
        whole.type = ir.TensorType(ir.DataType.from_numpy(steps.zero.dtype))
        return whole
