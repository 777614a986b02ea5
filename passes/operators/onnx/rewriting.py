"""Operators that are no plain ones of ONNX, in terms of those: what their rewritings share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement
from nmcompile.passes.operators.onnx.limits import attribute, operand

Form = Callable[[OnnxGraph, ir.Node], str | None]
"""Rewrites a node; returns None, or the reason why that cannot be done."""

DOMAIN = "com.microsoft"
"""Of onnxruntime's own operators."""


class Reason(Exception):
    """Why an operator cannot be rewritten; its text ends up in a refusal."""


class Rewriting(Replacement):
    """New nodes in the place of one, which reads what it has to be known of that."""

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

    def finish(self, value: ir.Value) -> None:
        """Give the readers of the old node's first output the new value, with its type."""
        old = self.node.outputs[0]
        old.type = value.type if old.type is None else old.type
        super().finish(value)


R = TypeVar("R", bound=Rewriting)


def form(make: Callable[[OnnxGraph, ir.Node], R], rewrite: Callable[[R], None]) -> Form:
    """The form of a function that raises a `Reason` where it cannot rewrite."""

    def checked(graph: OnnxGraph, node: ir.Node) -> str | None:
        try:
            rewrite(make(graph, node))
        except Reason as reason:
            graph.sweep()
            return str(reason)
        return None

    return checked


def key(node: ir.Node) -> str:
    """What tables of forms call the operator of a node: with its domain where it is not ONNX's."""
    return node.op_type if node.domain == "" else f"{node.domain}.{node.op_type}"
