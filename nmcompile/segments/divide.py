"""From a model that is not all ours to its parts: ours as models, the rest as ONNX files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.frontends import SourceModel
from nmcompile.passes.graphs.onnx.nodes import NAME, weight_names
from nmcompile.segments.cut import Segment, Task, cut

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
    """Consecutive work of one side.

    nodes: positions in the graph that was divided.
    inputs, outputs: names of the tensors that it reads and makes.
    operators: how often each is in it.
    reasons: by node, why it is not computed here; of the rest only.
    source: the part as a model to compile; None for the rest.
    proto: the part as an ONNX model.
    """

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    reasons: Mapping[int, str]
    source: SourceModel | None
    proto: onnx.ModelProto


@dataclass(frozen=True, eq=False)
class Divided(Generic[T]):
    """A model in parts, in the order in which they run, and what was made of those that are ours.

    elsewhere: by layer that is not computed here, why.
    """

    parts: tuple[Part, ...]
    made: tuple[T | None, ...]
    elsewhere: Mapping[str, str]


def divide_by(
    source: SourceModel, attempt: Callable[[SourceModel], T], refusal: Exception
) -> Divided[T]:
    """Divide a model so that every part of ours can be compiled.

    Args:
        source: an ONNX model, folded.
        attempt: compiles a part; what it refuses goes to the rest.
        refusal: of the whole model.

    Raises:
        UnsupportedOperatorError: nothing pays for us.
        NmcompileError: what `attempt` raises else.
    """
    from nmcompile.passes.operators.onnx.refusals import refusals
    from nmcompile.segments.types import complete_types

    graph: Any = source.graph
    complete_types(graph)
    _copy_constant_outputs(graph)
    refused = refusals(graph)
    done: dict[tuple[int, ...], T] = {}
    while True:
        parts = _divide(source, refused, refusal)
        try:
            for part in parts:
                if part.source is not None and part.nodes not in done:
                    done[part.nodes] = attempt(part.source)
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


def _divide(
    source: SourceModel, refused: Mapping[int, str], refusal: Exception
) -> tuple[Part, ...]:
    from nmcompile.segments.models import Extractor
    from nmcompile.segments.network import read_network

    graph: Any = source.graph
    network = read_network(graph, set(refused))
    free = [index for index in range(len(network.reads)) if index not in network.fixed]
    segments = [
        Segment(segment.ours, tuple(free[index] for index in segment.nodes))
        for segment in cut(_task(graph, network, free, refused))
    ]
    if not any(segment.ours for segment in segments):
        raise UnsupportedOperatorError(f"{_sentence(refusal)}; {WHOLLY}") from refusal
    proto = source.native()
    extractor = Extractor(proto, network)
    return tuple(_part(source, extractor, proto, segment, refused) for segment in segments)


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
    source: SourceModel,
    extractor: Extractor,
    proto: onnx.ModelProto,
    segment: Segment,
    refused: Mapping[int, str],
) -> Part:
    inputs, outputs = extractor.ends(segment.nodes)
    content = extractor.extract(segment.nodes, proto.graph.name)
    operators = Counter(proto.graph.node[index].op_type for index in segment.nodes)
    ours = _model(source, content, inputs, outputs) if segment.ours else None
    reasons = {index: refused.get(index, CARRIED) for index in segment.nodes}
    return Part(
        segment.nodes, inputs, outputs, operators, {} if segment.ours else reasons, ours, content
    )


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
