"""New nodes in place of one that is not believed in."""

from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.interface import Array


class Replacement:
    """Nodes that are put in front of an old one, and in the end take its place."""

    def __init__(self, graph: FxGraph, node: fx.Node) -> None:
        self._graph, self._node = graph, node

    def constant(self, value: Array | float) -> fx.Node:
        """A new parameter or buffer, float32 for a number."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        dtype = torch.from_numpy(array).dtype
        with self._graph.module.graph.inserting_before(self._node):
            return self._graph.new_constant(f"{self._node.name}_constant", array, dtype)

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node whose value is known from those of its arguments."""
        with self._graph.module.graph.inserting_before(self._node):
            node = self._graph.module.graph.call_function(target, args, kwargs)
        given, named = fx.map_arg((args, kwargs), _value)
        node.meta["val"] = target(*given, **named)
        return node

    def finish(self, value: fx.Node) -> None:
        """Give the readers of the old node the new value."""
        self._node.replace_all_uses_with(value)
        self._graph.sweep()


def _value(node: fx.Node) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda found: found.to("meta"), node.meta["val"])
