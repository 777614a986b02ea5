"""Numbers that integers stand for, in place of an operator that works on the integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement
from nmcompile.passes.operators.onnx.limits import attribute, operand

PER_SLICE = 13
"""The operator set from which on a DequantizeLinear has an axis."""
LATER_OPSET = 21
"""That from which on quantisation takes the dtypes of `LATER`."""
LATER = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4)


class Reason(Exception):
    """Why an operator cannot be rewritten; its text ends up in a refusal."""


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


class Rewriting(Replacement):
    """New nodes over real numbers, with dequantisations before and a quantisation behind."""

    def __init__(self, graph: OnnxGraph, node: ir.Node) -> None:
        super().__init__(graph, node)
        self.graph, self.node = graph, node

    def operand(self, index: int, name: str) -> ir.Value:
        """An input that has to be there."""
        value = operand(self.node, index)
        if value is None:
            raise Reason(f"it has no input {name}")
        return value

    def known(self, index: int, name: str) -> Array | None:
        """The contents of an input that has to be a constant, None where it is left out."""
        value = operand(self.node, index)
        if value is None:
            return None
        found = self.graph.constant(value)
        if found is None:
            raise Reason(f"its {name} {value.name} is computed when the model runs")
        return found

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

    def expect_opset(self, least: int, why: str) -> None:
        """Make sure that the model's operator set has words for the new form."""
        found = self.graph.model.graph.opset_imports.get("", 0)
        if found < least:
            raise Reason(f"{why}, for which opset {least} is expected, found {found}")

    def dtype(self, index: int, name: str) -> np.dtype[Any]:
        """Of an input."""
        found = self.graph.dtype(self.operand(index, name))
        if found is None:
            raise Reason(f"the dtype of its {name} is not known")
        return np.dtype(found)

    def number(self, name: str, default: float | None = None) -> float:
        """An attribute that has to be a number: nobody checks onnxruntime's own operators."""
        found = attribute(self.node, name, default)
        if not isinstance(found, int | float):
            raise Reason(f"its {name} is {found!r:.60}, no number")
        return found

    def rank(self, value: ir.Value) -> int:
        """The number of dimensions of a value, which has to be known."""
        shape = value.shape
        if shape is None:
            raise Reason(f"the shape of {value.name} is not known")
        return len(shape)

    def layer(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The operator over real numbers, under the name of the old one as it was in float32."""
        value = self.add(operator, *inputs, **attributes)
        maker = value.producer()
        assert maker is not None
        # onnxruntime's quantiser calls what it makes of /a/Conv so.
        maker.name = (self.node.name or "").removesuffix("_quant") or maker.name
        return value

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

    def finish(self, value: ir.Value) -> None:
        """Give the readers of the old node's first output the new value, with its type."""
        old = self.node.outputs[0]
        old.type = value.type if old.type is None else old.type
        super().finish(value)
