"""What stays in float32 although it could be in 8 bits, since what is around it does."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

NORMS = (
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
    *("GroupNormalization", "InstanceNormalization", "MeanVarianceNormalization"),
    "Sqrt",  # as in a norm that is spelled out
)
"""What the largest of a row's values decides on, and a few are far larger than all others."""

_LIMITED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish")
_CURVED = ("Erf", "Tanh", "Exp", "Pow", "Gelu", "Elu", "Selu", "Mish", "Softplus")
_PLAIN = ("Add", "Sub", "Mul", "Div", "Neg")


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
    neighbours = _neighbours(proto)
    inner = {n.name for n in proto.graph.node if n.op_type in operators and n.name not in layers}
    left: set[str] = set()
    for region in _regions(inner, neighbours):
        if not any(other in layers for name in region for other in neighbours[name]):
            left |= region
    return frozenset(left)


def transformer_regions(
    proto: onnx.ModelProto, layers: Collection[str], products: Collection[str]
) -> frozenset[str]:
    """Names of the nodes between layers that a norm, a softmax or attention is among.

    In 8 bits the sums that a norm reads lose most of what a transformer knows (Bondarenko et al.,
    arXiv 2109.12948), and what becomes of queries and keys has a kernel in float32 only.

    Args:
        proto: the model; its nodes have names.
        layers: names of all layers, and what is a part of them.
        products: names of the matrix products of two activations.
    """
    inner = {node.name for node in proto.graph.node if node.name not in layers}
    float_ = {n.name for n in proto.graph.node if n.op_type in (*NORMS, "Softmax")} | {*products}
    left: set[str] = set()
    for region in _regions(inner, _neighbours(proto)):
        if not region.isdisjoint(float_):
            left |= region
    return frozenset(left)


def biases(proto: onnx.ModelProto, layers: Collection[str]) -> frozenset[str]:
    """Names of the sums with a constant behind a layer: the bias of a product of any rank."""
    known = {tensor.name for tensor in proto.graph.initializer}
    made = {name for n in proto.graph.node if n.name in layers for name in n.output}
    uses: dict[str, int] = {}
    for node in proto.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    return frozenset(
        node.name
        for node in proto.graph.node
        if node.op_type == "Add" and not known.isdisjoint(node.input)
        and any(name in made and uses[name] == 1 for name in node.input)
    )  # fmt: skip


def curves(proto: onnx.ModelProto, layers: Collection[str]) -> frozenset[str]:
    """Names of the nodes of functions of one value that no operator in 8 bits computes: GELUs.

    Rounded between each step, they would lose more than the layers do.

    Args:
        proto: the model; its nodes have names.
        layers: names of all layers, and what is a part of them.
    """
    known = {tensor.name for tensor in proto.graph.initializer}
    roots: dict[str, str] = {}  # of values: what they are a function of
    steps: dict[str, set[str]] = {}  # nodes by that
    curved: set[str] = set()
    for node in proto.graph.node:
        own = {roots.get(name, name) for name in node.input if name and name not in known}
        kinds = (*_LIMITED, *_CURVED, *_PLAIN)
        if node.op_type not in kinds or node.name in layers or len(own) != 1:
            continue
        (root,) = own
        roots[node.output[0]] = root
        steps.setdefault(root, set()).add(node.name)
        if node.op_type in _CURVED:
            curved.add(root)
    return frozenset(name for root in curved for name in steps[root])


def _neighbours(proto: onnx.ModelProto) -> dict[str, set[str]]:
    """Names of the nodes that give to or take from each."""
    neighbours: dict[str, set[str]] = {node.name: set() for node in proto.graph.node}
    made = {name: node.name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        for name in node.input:
            if name in made:
                neighbours[node.name].add(made[name])
                neighbours[made[name]].add(node.name)
    return neighbours


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
