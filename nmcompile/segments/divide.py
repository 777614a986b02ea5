"""From a model that is not all ours to its parts: ours as models, the rest as ONNX files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.frontends import SourceModel
from nmcompile.passes.graphs.onnx.nodes import NAME, weight_names
from nmcompile.segments.cut import Segment, Task, cut
from nmcompile.wording import spell_shapes

if TYPE_CHECKING:
    import onnx

    from nmcompile.passes.graphs.onnx.graph import OnnxGraph
    from nmcompile.segments.models import Extractor
    from nmcompile.segments.network import Network

T = TypeVar("T")
WHOLLY = "nothing of the model would be gained here: it would run wholly in onnxruntime"
CARRIED = "computed where the operators around it are: to bring it here and back would cost more"


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive work of one side, in all shapes of the model.

    nodes: positions in the graph that was divided.
    inputs, outputs: names of the tensors that it reads and makes.
    operators: how often each is in it.
    reasons: by node, why it is not computed here; of the rest only.
    sources: the part as a model to compile, for each shape; none for the rest.
    protos: the part as an ONNX model, for each shape.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    reasons: Mapping[int, str]
    sources: tuple[SourceModel, ...]
    protos: tuple[onnx.ModelProto, ...]

    @property
    def ours(self) -> bool:
        """Whether it is computed here."""
        return bool(self.sources)


@dataclass(frozen=True, eq=False)
class Divided(Generic[T]):
    """A model in parts, in the order in which they run, and what was made of those that are ours.

    elsewhere: by layer that is not computed here, why.
    """

    parts: tuple[Part, ...]
    made: tuple[T | None, ...]
    elsewhere: Mapping[str, str]


def divide_by(
    sources: Sequence[SourceModel],
    attempt: Callable[[Sequence[SourceModel]], T],
    refusal: Exception,
) -> Divided[T]:
    """Divide a model so that every part of ours can be compiled, in the same way for all shapes.

    Args:
        sources: an ONNX model, folded, for each of its shapes; sizes of the first decide.
        attempt: compiles a part; what it refuses goes to the rest.
        refusal: of the whole model.

    Raises:
        UnsupportedOperatorError: nothing pays for us, or the shapes have other operators.
        NmcompileError: what `attempt` raises else.
    """
    from nmcompile.passes.operators.onnx.refusals import refusals
    from nmcompile.segments.types import complete_types

    graphs: list[Any] = [source.graph for source in sources]
    for each in graphs:
        complete_types(each)
        _copy_constant_outputs(each)
    _networks(sources, {}, refusal)  # which have to be alike before positions in them can be
    refused = dict[int, str]()
    for each in graphs:
        refused = refusals(each) | refused
    graph, done = graphs[0], dict[tuple[int, ...], T]()
    while True:
        parts = _divide(sources, refused, refusal)
        try:
            for part in parts:
                if part.ours and part.nodes not in done:
                    done[part.nodes] = attempt(part.sources)
        except UnsupportedOperatorError as error:
            refused |= dict.fromkeys(_guilty(part, graph, error), _sentence(error))
            continue
        names = _layer_names(graph)
        elsewhere = {
            name: why for part in parts for i, why in part.reasons.items() for name in names[i]
        }
        return Divided(parts, tuple(done.get(part.nodes) for part in parts), elsewhere)


def _layer_names(graph: OnnxGraph) -> list[tuple[str, ...]]:
    """By position, the names of the weights of a node; () for other nodes."""
    return [weight_names(node) for node in graph.model.graph]


def _copy_constant_outputs(graph: OnnxGraph) -> None:
    """Outputs that are initializers become copies of such, so that a part makes them."""
    import onnx_ir as ir

    for index, output in enumerate(graph.model.graph.outputs):
        stored = graph.stored(output)
        if stored is None:
            continue
        name = str(output.name)
        made = graph.new_constant(f"{name}_value", stored)
        node = ir.node("Identity", [made], name=f"{name}_output")
        node.outputs[0].name, node.outputs[0].shape = name, made.shape
        node.outputs[0].type = made.type
        graph.model.graph.outputs[index] = node.outputs[0]
        output.replace_all_uses_with(made)
        del graph.model.graph.initializers[name]
        graph.model.graph.append(node)


def _networks(
    sources: Sequence[SourceModel], refused: Mapping[int, str], refusal: Exception
) -> list[Network]:
    """The numbered nodes for each shape, which are the same but for what is known of their sizes.

    Raises:
        UnsupportedOperatorError: they are not.
    """
    from nmcompile.segments.network import read_network

    graphs: list[Any] = [source.graph for source in sources]
    found = [read_network(graph, set(refused)) for graph in graphs]
    lists = [_nodes(graph, network) for graph, network in zip(graphs, found, strict=True)]
    for source, nodes in zip(sources, lists, strict=True):
        if nodes == lists[0]:
            continue
        both = zip_longest(lists[0], nodes, fillvalue=None)
        (first, other) = next(pair for pair in both if pair[0] != pair[1])
        raise UnsupportedOperatorError(
            f"{source.title}: onnxruntime would run parts ({_sentence(refusal)}), which takes the "
            f"same operators for all shapes, found {_spell(first)} for {_shapes(sources[0])} and "
            f"{_spell(other)} for {_shapes(source)}: compile one artifact for each shape"
        ) from refusal
    return found


_Node = tuple[str, tuple[str, ...], tuple[str, ...], bool]
"""What it is, the tensors that it makes and reads, and whether these are constants."""


def _nodes(graph: OnnxGraph, network: Network) -> list[_Node]:
    return [
        (str(node.op_type), writes, reads, index in network.fixed)
        for index, (node, writes, reads) in enumerate(
            zip(graph.model.graph, network.writes, network.reads, strict=True)
        )
    ]


def _spell(node: _Node | None) -> str:
    """For example ``Add y of a, b``."""
    if node is None:
        return "none"
    name, writes, reads, fixed = node
    return f"{name} {', '.join(writes)} of {'constants' if fixed else ', '.join(reads)}"


def _shapes(source: SourceModel) -> str:
    return spell_shapes({name: shape for name, shape, _ in source.inputs})


def _divide(
    sources: Sequence[SourceModel], refused: Mapping[int, str], refusal: Exception
) -> tuple[Part, ...]:
    from nmcompile.segments.models import Extractor

    networks = _networks(sources, refused, refusal)
    graph: Any = sources[0].graph
    network = networks[0]
    free = [index for index in range(len(network.reads)) if index not in network.fixed]
    segments = [
        Segment(segment.ours, tuple(free[index] for index in segment.nodes))
        for segment in cut(_task(graph, network, free, refused))
    ]
    if not any(segment.ours for segment in segments):
        raise UnsupportedOperatorError(f"{_sentence(refusal)}; {WHOLLY}") from refusal
    extractors = [
        Extractor(source.native(), network)
        for source, network in zip(sources, networks, strict=True)
    ]
    return tuple(_part(sources, extractors, segment, refused) for segment in segments)


def _task(graph: OnnxGraph, network: Network, free: list[int], refused: Mapping[int, str]) -> Task:
    places = {index: place for place, index in enumerate(free)}
    macs: Counter[str] = Counter()
    for layer in graph.computed():
        macs[layer.name] += layer.macs or 0
    work = [sum(macs[name] for name in names) for names in _layer_names(graph)]
    sizes = {}
    for node in graph.model.graph:
        for value in node.outputs:
            shape, dtype = graph.shape(value), graph.dtype(value)
            if value.name and shape is not None and dtype is not None:
                sizes[value.name] = math.prod(shape) * _itemsize(dtype)
    return Task(
        able=[index not in refused for index in free],
        reads=[network.reads[index] for index in free],
        makers={name: places[at] for name, at in network.makers.items() if at in places},
        sizes=sizes,
        work=[work[index] for index in free],
    )


def _itemsize(dtype: str) -> int:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 2  # bfloat16 and narrower


def _part(
    sources: Sequence[SourceModel],
    extractors: Sequence[Extractor],
    segment: Segment,
    refused: Mapping[int, str],
) -> Part:
    inputs, outputs = extractors[0].ends(segment.nodes)
    protos = tuple(extractor.extract(segment.nodes) for extractor in extractors)
    graph: Any = sources[0].graph
    nodes = list(graph.model.graph)
    operators = Counter(str(nodes[index].op_type) for index in segment.nodes)
    if not segment.ours:
        reasons = {index: refused.get(index, CARRIED) for index in segment.nodes}
        return Part(segment.nodes, inputs, outputs, operators, reasons, (), protos)
    ours = tuple(
        _model(source, proto, inputs, outputs)
        for source, proto in zip(sources, protos, strict=True)
    )
    return Part(segment.nodes, inputs, outputs, operators, {}, ours, protos)


def _model(
    source: SourceModel,
    proto: onnx.ModelProto,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> SourceModel:
    """A part as a model to compile, whose layers keep their names."""
    import onnx_ir as ir

    from nmcompile.passes.graphs.onnx.graph import OnnxGraph

    whole: Any = source.graph

    def made(node: ir.Node) -> tuple[str, ...]:
        return tuple(str(value.name) for value in node.outputs)

    names = {made(node): node.meta[NAME] for node in whole.model.graph if NAME in node.meta}
    model = ir.from_proto(proto)
    for node in model.graph:
        name = names.get(made(node))
        if name is not None:
            node.meta[NAME] = name
    graph = OnnxGraph(model)
    specs = tuple(
        (str(value.name), graph.shape(value) or (), graph.dtype(value) or "float32")
        for value in model.graph.inputs
    )
    return SourceModel("onnx", source.title, graph, specs, outputs)


def _guilty(part: Part, graph: OnnxGraph, error: UnsupportedOperatorError) -> tuple[int, ...]:
    """The nodes that an error names; all of the part where it names none."""
    nodes = list(graph.model.graph)
    found = []
    for index in part.nodes:
        names = {nodes[index].name, *(value.name for value in nodes[index].outputs)} - {"", None}
        if any(
            error.node == name or error.node.startswith((f"{name}/", f"{name}.")) for name in names
        ):
            found.append(index)
    return tuple(found) or part.nodes


def _sentence(error: Exception) -> str:
    """What was refused, without the advice behind it."""
    return str(error).removeprefix("the model cannot be compiled: ").partition("; ")[0]
