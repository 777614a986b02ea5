"""What the rewritings of onnxruntime's operators share."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.onnx.rewriting import Reason, Rewriting

AXES_ARE_INPUTS = 18
"""The operator set from which on reductions take their axes as an input."""


class Writing(Rewriting):
    """New float32 nodes in the place of one of onnxruntime's."""

    def given(self, index: int, name: str) -> ir.Value:
        """An input that has to be there, in float32."""
        value = self.operand(index, name)
        if self.graph.dtype(value) != "float32":
            raise Reason(f"its {name} is {self.graph.dtype(value)}, not float32")
        return value

    def maybe(self, index: int, name: str) -> ir.Value | None:
        """An input in float32, or None where it is left out."""
        return None if operand(self.node, index) is None else self.given(index, name)

    def refuse_inputs(self, **names: int) -> None:
        """Make sure that these inputs are left out."""
        for name, index in names.items():
            if operand(self.node, index) is not None:
                raise Reason(f"it has an input {name}")

    def refuse_outputs(self, **names: int) -> None:
        """Make sure that nobody reads these outputs."""
        for name, index in names.items():
            if self.wants(index):
                raise Reason(f"its output {name} is read")

    def wants(self, index: int) -> bool:
        """Whether an output is read."""
        outputs = self.node.outputs
        return index < len(outputs) and (
            bool(outputs[index].uses()) or outputs[index].is_graph_output()
        )

    def expect(self, name: str, *allowed: object) -> None:
        """Make sure that an attribute has one of these values; the first is its default."""
        found = attribute(self.node, name, allowed[0])
        if found not in allowed:
            raise Reason(f"its {name} is {found!r:.60}, not {' or '.join(map(str, allowed))}")

    def extents(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of a value, which has to be known."""
        shape = self.graph.shape(value)
        if shape is None:
            raise Reason(f"the shape of {value.name} is not known")
        return shape

    def real(self, number: float) -> ir.Value:
        """A constant."""
        return self.constant(np.asarray(number, np.float32))

    def reshaped(self, x: ir.Value, *shape: int) -> ir.Value:
        """In another shape; 0 is the extent at the same place."""
        return self.add("Reshape", x, self.constant(np.asarray(shape, np.int64)))

    def sliced(self, x: ir.Value, begin: int, end: int) -> ir.Value:
        """A part of the last axis."""
        bounds = (self.constant(np.asarray([number], np.int64)) for number in (begin, end, -1))
        return self.add("Slice", x, *bounds)

    def mean(self, x: ir.Value) -> ir.Value:
        """Over the last axis, which stays."""
        if self.graph.model.graph.opset_imports.get("", 0) >= AXES_ARE_INPUTS:
            return self.add("ReduceMean", x, self.constant(np.asarray([-1], np.int64)), keepdims=1)
        return self.add("ReduceMean", x, axes=[-1], keepdims=1)

    def normalised(self, x: ir.Value, *, centred: bool, epsilon: float) -> ir.Value:
        """Rows with mean square 1 and, where they are centred, mean 0."""
        x = self.add("Sub", x, self.mean(x)) if centred else x
        square = self.mean(self.add("Mul", x, x))
        return self.add("Div", x, self.add("Sqrt", self.add("Add", square, self.real(epsilon))))

    def gelu(self, x: ir.Value) -> ir.Value:
        """Each number times the share of a normal distribution that is below it."""
        erf = self.add("Erf", self.add("Mul", x, self.real(math.sqrt(0.5))))
        share = self.add("Mul", self.add("Add", erf, self.real(1)), self.real(0.5))
        return self.add("Mul", x, share)

    def finish_all(self, *values: ir.Value | None) -> None:
        """Give the readers of each output the new value; of those left out nobody reads one."""
        for old, value in zip(self.node.outputs[1:], values[1:], strict=False):
            if value is not None and (old.uses() or old.is_graph_output()):
                value.type = old.type or value.type
                self.graph.replace(old, value)
        first = values[0]
        assert first is not None
        kind, shape = first.type, first.shape
        self.finish(first)
        first.type, first.shape = first.type or kind, first.shape or shape
