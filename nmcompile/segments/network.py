"""An ONNX graph as numbered nodes: what each reads and makes, inside of its subgraphs too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.constants import RANDOM
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.graphs.onnx.nodes import GRAPHS


@dataclass(frozen=True, eq=False)
class Network:
    """The nodes of a main graph by their positions in it.

    reads: names of the tensors that a node reads and that other nodes or the caller make.
    writes: names of what it makes.
    constants: of the constants that it reads, initializers and what is computed from them alone.
    fixed: nodes that are computed from constants alone: every part that reads them has its own.
    makers: the node that makes a tensor, fixed ones included.
    """

    reads: tuple[tuple[str, ...], ...]
    writes: tuple[tuple[str, ...], ...]
    constants: tuple[tuple[str, ...], ...]
    fixed: frozenset[int]
    makers: dict[str, int]


def read_network(graph: OnnxGraph, refused: set[int]) -> Network:
    """Number the nodes of a graph.

    Args:
        graph: the model.
        refused: nodes that are not to be computed here; they are never `fixed`.
    """
    model = graph.model.graph
    outputs = set(model.outputs)
    constant: set[ir.Value] = set(model.initializers.values()) - set(model.inputs)
    fixed = set[int]()
    reads, writes, constants = [], [], []
    makers: dict[str, int] = {}
    for index, node in enumerate(model):
        used = list(dict.fromkeys(_used(node)))
        if (
            index not in refused
            and constant.issuperset(used)
            and node.op_type not in RANDOM
            and outputs.isdisjoint(node.outputs)
        ):
            fixed.add(index)
            constant.update(node.outputs)
        reads.append(tuple(str(v.name) for v in used if v not in constant))
        constants.append(tuple(str(v.name) for v in used if v in constant))
        writes.append(tuple(str(v.name) for v in node.outputs if v.name))
        makers.update(dict.fromkeys(writes[-1], index))
    return Network(tuple(reads), tuple(writes), tuple(constants), frozenset(fixed), makers)


def _used(node: ir.Node) -> Iterator[ir.Value]:
    """Its inputs, and what its subgraphs take from around them."""
    yield from (value for value in node.inputs if value is not None and value.name)
    for attribute in node.attributes.values():
        if attribute.type not in GRAPHS:
            continue
        inner = attribute.value if isinstance(attribute.value, ir.Graph) else None
        for graph in [inner] if inner is not None else attribute.as_graphs():
            own = {*graph.inputs, *graph.initializers.values()}
            own.update(value for one in graph for value in one.outputs)
            found = [value for one in graph for value in _used(one)]
            yield from (value for value in (*found, *graph.outputs) if value not in own)
