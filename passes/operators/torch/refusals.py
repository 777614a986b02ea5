"""Everything in an aten graph that `settle` would refuse, with the sentence that says why."""

import operator
from collections.abc import Iterator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.operators.torch.settle import doubt, rewrite
from nmcompile.runtime.specs import DTYPES


def refusals(graph: FxGraph) -> dict[fx.Node, str]:
    """Why nodes cannot be compiled; leaves the graph as it is.

    A node that is rewritten as several is refused if one of these is. So is what reads or makes a
    tensor of open shape, without elements, or of a type that no artifact passes on.
    """
    copied = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    copied.graph_copy(graph.module.graph, twins)
    # Which node of the original each one of the copy stands for.
    origins = {copy: node for node, copy in twins.items()}
    copied.output(tuple(twins[node] for node in graph.module.graph.output_node().all_input_nodes))
    copy = FxGraph(fx.GraphModule(graph.module, copied))
    found: dict[fx.Node, str] = {}
    while (node := _next_doubtful(copy, origins, found)) is not None:
        origin, before = origins[node], set(copy.module.graph.nodes)
        reason = doubt(copy, node)
        left = rewrite(copy, node)
        if left is not None:
            also = f" ({left})" if left else ""
            found[origin] = f"{node.target} (node {origin.name}): {reason}{also}"
        for new in copy.module.graph.nodes:
            if new not in before:
                origins[new] = origin
    for node in graph.module.graph.nodes:
        if node.op.startswith("call") and node not in found:
            picked = found.get(node.args[0]) if node.target is operator.getitem else None
            unknown = _unknown(node)
            if picked is not None:
                found[node] = picked
            elif unknown is not None:
                found[node] = f"{node.target} (node {node.name}): {unknown}"
    return found


def _next_doubtful(
    graph: FxGraph, origins: dict[fx.Node, fx.Node], found: dict[fx.Node, str]
) -> fx.Node | None:
    nodes: list[fx.Node] = list(graph.module.graph.nodes)
    for node in nodes:
        if not node.op.startswith("call") or node.target is operator.getitem:
            continue
        if origins[node] not in found and doubt(graph, node) is not None:
            return node
    return None


def _unknown(node: fx.Node) -> str | None:
    for value in _values(node):
        if not isinstance(value, torch.Tensor):
            if value is not None:
                return f"expected tensors, found {type(value).__name__}"
            continue
        if any(type(extent) is not int for extent in value.shape):
            return "expected tensors of fixed shapes, found one whose shape depends on values"
        if 0 in value.shape:
            return f"expected dimensions of at least 1, found the shape {tuple(value.shape)}"
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            return f"expected {', '.join(DTYPES)}, found {dtype}"
    return None


def _values(node: fx.Node) -> Iterator[object]:
    """What a node reads and makes, as export recorded it.

    Of several results those count that are taken: batch norms make empty ones, too.
    """
    picks = node.target is operator.getitem
    for one in () if picks else node.all_input_nodes:
        if one.op != "get_attr":
            yield from pytree.tree_leaves(one.meta.get("val"))
    if node.users and all(user.target is operator.getitem for user in node.users):
        yield from (user.meta.get("val") for user in node.users)
    else:
        yield from pytree.tree_leaves(node.meta.get("val"))
