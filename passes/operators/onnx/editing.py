"""New nodes in place of one that is not believed in."""

from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, unique_name
from nmcompile.passes.graphs.onnx.graph import OnnxGraph


class Replacement:
    """Nodes that are put in front of an old one, and in the end take its place."""

    def __init__(self, graph: OnnxGraph, node: ir.Node) -> None:
        self._graph, self._node = graph, node
        self._count = 0

    @cached_property
    def _taken(self) -> set[str]:
        """Names of values, which those of the new ones join: all of the graph is looked at once."""
        return self._graph.value_names()

    def constant(self, array: Array) -> ir.Value:
        """A new initializer."""
        name = f"{self._name}.constant"
        return self._graph.new_constant(name, np.asarray(array), self._taken)

    def add(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node of one output, whose type is that of its first input."""
        self._count += 1
        node = ir.node(
            operator, list(inputs), attributes, name=f"{self._name}.{operator}_{self._count}"
        )
        value = node.outputs[0]
        value.name = unique_name(f"{self._name}.{self._count}", self._taken)
        first = inputs[0]
        value.type = None if first is None else first.type
        self._graph.model.graph.insert_before(self._node, node)
        return value

    def finish(self, value: ir.Value) -> None:
        """Give the readers of the old node's first output the new value."""
        old = self._node.outputs[0]
        value.shape, value.type = old.shape, old.type
        self._graph.replace(old, value)
        self._graph.sweep()

    @property
    def _name(self) -> str:
        return str(self._node.name or self._node.outputs[0].name)
