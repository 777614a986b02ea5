"""What a graph does besides returning tensors: taken off before passes, and put back after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile.errors import UnsupportedOperatorError

_FOR_TRACING = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.detach_.default,
    torch.ops.aten.lift_fresh_copy.default,
}


@dataclass(frozen=True)
class _Slot:
    """Stands in an argument for one of the values that the graph returns behind its own."""

    index: int


@dataclass(frozen=True)
class Effects:
    """Operators at the end of a graph whose results nobody reads: writes into inputs, assertions.

    calls: each with its arguments, in which values of the graph are slots.
    count: how many values are returned for them.
    """

    calls: tuple[tuple[Any, Any, Any], ...]
    count: int

    def put_back(self, module: fx.GraphModule) -> None:
        """Do them, in the same graph, at its end."""
        output = module.graph.output_node()
        returned = tuple(output.args[0])  # type: ignore[arg-type]
        own = len(returned) - self.count
        slots = returned[own:]

        def fill(value: Any) -> Any:
            return slots[value.index] if isinstance(value, _Slot) else value

        with module.graph.inserting_before(output):
            for target, args, kwargs in self.calls:
                arguments = fx.node.map_aggregate((args, kwargs), fill)
                module.graph.call_function(target, *arguments)
        output.args = (returned[:own],)


def take_effects(module: fx.GraphModule) -> Effects:
    """Remove them from an aten graph; what they read is returned behind its own results.

    Raises:
        UnsupportedOperatorError: the graph does something that cannot be done at its end.
    """
    output = module.graph.output_node()
    slots: dict[fx.Node, int] = {}

    def slot(node: fx.Node) -> Any:
        return _Slot(slots.setdefault(node, len(slots)))

    calls = []
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.users or not _acts(node):
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            raise UnsupportedOperatorError(
                f"{node.target} (node {node.name}) returns nothing that is read; expected "
                "operators of aten, which say what they write to"
            )
        calls.append((node.target, *fx.map_arg((node.args, node.kwargs), slot)))
        module.graph.erase_node(node)
    output.args = ((*output.args[0], *slots),)  # type: ignore[misc]
    module.recompile()
    return Effects(tuple(calls), len(slots))


def written(module: fx.GraphModule) -> list[fx.Node]:
    """What an aten graph writes to at its end."""
    nodes = module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
    return [node.args[0] for node in nodes if isinstance(node.args[0], fx.Node)]


def _acts(node: fx.Node) -> bool:
    if node.target in _FOR_TRACING:
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable or not schema.returns
