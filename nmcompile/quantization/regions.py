"""Sums, pooling and activations among layers in float32 stay in float32, too."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx


def float_regions(
    proto: onnx.ModelProto, operators: Collection[str], layers: Collection[str]
) -> frozenset[str]:
    """Names of the nodes that neither read from a layer in integers nor are read by one.

    Nodes that are no layers hang together in regions, and a region is in integers if any layer
    beside it is.

    Args:
        proto: the model; its nodes have names.
        operators: what could be in integers.
        layers: names of the layers in integers.
    """
    neighbours: dict[str, set[str]] = {node.name: set() for node in proto.graph.node}
    made = {name: node.name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        for name in node.input:
            if name in made:
                neighbours[node.name].add(made[name])
                neighbours[made[name]].add(node.name)
    inner = {n.name for n in proto.graph.node if n.op_type in operators and n.name not in layers}
    left: set[str] = set()
    for region in _regions(inner, neighbours):
        if not any(other in layers for name in region for other in neighbours[name]):
            left |= region
    return frozenset(left)


def _regions(inner: set[str], neighbours: dict[str, set[str]]) -> Iterator[set[str]]:
    waiting = set(inner)
    while waiting:
        region, open_ = set[str](), {waiting.pop()}
        while open_:
            name = open_.pop()
            region.add(name)
            open_ |= (neighbours[name] & inner) - region
        waiting -= region
        yield region
