"""Which nodes of an aten graph are compiled, and which stay with torch."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import fx
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import NAME, is_pure
from nmcompile.segments.cut import Task, cut

PREFIX = "part_"
"""What the submodules of `divide` are called, with their number behind it."""

IN_PLACE = "returned as a view, whose memory is that of another tensor"


def pieces(graph: FxGraph, refused: Mapping[fx.Node, str]) -> list[list[fx.Node]]:
    """The nodes of each part that pays to compile, in the order in which the parts run.

    Args:
        graph: a folded graph, in which no two nodes share a constant: see `give_constants`.
        refused: what cannot be compiled.
    """
    fixed = _fixed(graph.module)
    nodes = [node for node in graph.module.graph.nodes if _runs(node, fixed)]
    places = {node: place for place, node in enumerate(nodes)}
    macs: Counter[str] = Counter()
    for layer in graph.computed():
        macs[layer.name] += layer.macs or 0
    task = Task(
        able=[node not in refused for node in nodes],
        reads=[
            [source.name for source in node.all_input_nodes if source not in fixed]
            for node in nodes
        ],
        makers={node.name: places[node] for node in nodes},
        sizes=_sizes(graph.module),
        work=[macs[str(node.meta.get(NAME, ""))] for node in nodes],
    )
    found = []
    for segment in cut(task):
        if segment.ours:
            own = [nodes[place] for place in segment.nodes]
            if sum(macs[str(node.meta.get(NAME, ""))] for node in own):
                found.append([*_constants(own, fixed), *own])
    return found


def views_returned(module: fx.GraphModule) -> dict[fx.Node, str]:
    """The nodes that only give another view of a tensor to the caller, who may write to it."""
    found = {}
    waiting = list(module.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and is_view(node) and node not in found:
            found[node] = IN_PLACE
            waiting += node.all_input_nodes
    return found


def is_view(node: fx.Node) -> bool:
    """Whether what a node makes may lie in the memory of what it reads."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "call_function" and is_view(source)
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        argument.alias_info is not None and not argument.alias_info.is_write
        for argument in schema.arguments
    )


def give_constants(module: fx.GraphModule) -> None:
    """Give every node nodes of its own for the constants that it reads, in place."""
    graph, fixed = module.graph, _fixed(module)

    def own(node: fx.Node) -> fx.Node:
        return graph.node_copy(node, own) if node in fixed else node

    for node in list(graph.nodes):
        if node in fixed or node.op == "output":
            continue
        with graph.inserting_before(node):
            node.args = fx.map_arg(node.args, own)
            node.kwargs = fx.map_arg(node.kwargs, own)
    for node in reversed(list(graph.nodes)):
        if node in fixed and not node.users:
            graph.erase_node(node)


def divide(module: fx.GraphModule, parts: Iterable[Iterable[fx.Node]]) -> fx.GraphModule:
    """A copy of a graph in which each part is a submodule that returns a tuple."""
    graph, twins = fx.Graph(), dict[fx.Node, fx.Node]()
    returned = graph.graph_copy(module.graph, twins)
    graph.output(returned)
    copied = fx.GraphModule(module, graph)
    groups: list[dict[fx.Node, int | None]] = [
        {twins[node]: None for node in part} for part in parts
    ]
    return fuse_by_partitions(copied, groups, PREFIX, always_return_tuple=True)


def _fixed(module: fx.GraphModule) -> set[fx.Node]:
    """The constants, and what is computed of them alone."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        reads = node.all_input_nodes
        if node.op == "get_attr" or (is_pure(node) and reads and found.issuperset(reads)):
            found.add(node)
    return found


def _constants(nodes: list[fx.Node], fixed: set[fx.Node]) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    waiting = list(nodes)
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node in fixed]
        waiting += [node for node in new if node not in found]
        found.update(dict.fromkeys(new))
    return list(found)


def _runs(node: fx.Node, fixed: set[fx.Node]) -> bool:
    return node.op.startswith("call") and node not in fixed


def _sizes(module: fx.GraphModule) -> dict[str, int]:
    """Bytes of the tensors; what makes several has none, and stays with those who pick from it."""
    found = {}
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and all(type(e) is int for e in value.shape):
            found[node.name] = math.prod(value.shape) * value.element_size()
    return found
