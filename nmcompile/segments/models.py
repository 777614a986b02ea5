"""Parts of an ONNX model as models of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from nmcompile.errors import UnsupportedOperatorError
from nmcompile.segments.network import Network


class Extractor:
    """Cuts parts out of one model, weights included; the model stays as it is."""

    def __init__(self, proto: onnx.ModelProto, network: Network) -> None:
        self._proto, self._network = proto, network
        graph = proto.graph
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._known: dict[str, onnx.ValueInfoProto] = {
            value.name: value for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self._order = [value.name for value in graph.input]
        self._order += [name for node in graph.node for name in node.output if name]
        self._results = {value.name for value in graph.output}

    def ends(self, nodes: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What some nodes read from others and the caller, and what these read of theirs.

        Args:
            nodes: none of them fixed.
        """
        inside = set(nodes)
        network = self._network
        made = {name for index in inside for name in network.writes[index]}
        read = {name for index in inside for name in network.reads[index]} - made
        wanted = set(self._results)
        for index, names in enumerate(network.reads):
            if index not in inside:
                wanted.update(names)
        return self._sorted(read), self._sorted(made & wanted)

    def extract(self, nodes: Sequence[int]) -> onnx.ModelProto:
        """These nodes, in their order, between the tensors of `ends`.

        Raises:
            UnsupportedOperatorError: the type of a tensor that crosses is not known.
        """
        network, graph = self._network, self._proto.graph
        inputs, outputs = self.ends(nodes)
        taken, constants = self._with_constants(nodes)
        result = onnx.ModelProto()
        result.CopyFrom(_frame(self._proto))
        result.graph.name = graph.name
        result.graph.node.extend(graph.node[index] for index in taken)
        result.graph.initializer.extend(
            self._stored[constant] for constant in constants if constant in self._stored
        )
        result.graph.input.extend(self._typed(value, nodes) for value in inputs)
        result.graph.output.extend(self._typed(value, nodes) for value in outputs)
        made = {value for index in taken for value in network.writes[index]}
        result.graph.value_info.extend(
            value for value in graph.value_info if value.name in made.difference(outputs)
        )
        _forget_origins(result.graph)
        return result

    def _with_constants(self, nodes: Iterable[int]) -> tuple[list[int], list[str]]:
        """The nodes with the fixed ones that they read, and names of the constants."""
        network, taken = self._network, set(nodes)
        constants: dict[str, None] = {}
        waiting = list(taken)
        while waiting:
            for name in network.constants[waiting.pop()]:
                constants[name] = None
                maker = network.makers.get(name)
                if maker is not None and maker not in taken:
                    taken.add(maker)
                    waiting.append(maker)
        order = {name: place for place, name in enumerate(self._stored)}
        return sorted(taken), sorted(constants, key=lambda name: order.get(name, 0))

    def _typed(self, name: str, nodes: Sequence[int]) -> onnx.ValueInfoProto:
        found = self._known.get(name)
        if found is None or found.type.WhichOneof("value") is None:
            first = self._proto.graph.node[nodes[0]]
            raise UnsupportedOperatorError(
                f"the type of {name}, a tensor between parts of the model (one begins with "
                f"{first.op_type}), is unknown; expected one that ONNX's inference finds"
            )
        return found

    def _sorted(self, names: set[str]) -> tuple[str, ...]:
        return tuple(name for name in self._order if name in names)


def _forget_origins(graph: onnx.GraphProto) -> None:
    """Take out what exporters note beside nodes and values: stack traces, with paths of theirs.

    It differs from one export of a model to the next.
    """
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _forget_origins(inner)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")


def _frame(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its graph."""
    frame = onnx.ModelProto()
    frame.ir_version = proto.ir_version
    frame.opset_import.extend(proto.opset_import)
    frame.producer_name, frame.producer_version = proto.producer_name, proto.producer_version
    return frame
