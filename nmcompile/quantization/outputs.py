"""What is read as real numbers: outputs, whose largest would be cut off and tie, and some nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from nmcompile.quantization.folded import PRODUCTS

SUMS = (*PRODUCTS, "Add", "Sum")
"""What may make larger numbers than calibration has shown."""

FINAL = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"),
    *("Relu", "Clip", "Softmax", "LogSoftmax"),
)
"""What may stand between the last product and an output without being worth integers."""


def final_nodes(proto: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes of `FINAL` that only outputs depend on."""
    found: set[str] = set()
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in reversed(proto.graph.node):  # readers stand behind
        behind = (reader.name for name in node.output for reader in readers.get(name, ()))
        if node.op_type in FINAL and all(name in found for name in behind):
            found.add(node.name)
    return frozenset(found)


def read_real(proto: onnx.ModelProto, nodes: Collection[str]) -> None:
    """Have nodes read what others read rounded as it was before; what nothing reads goes away."""
    graph = proto.graph
    made = {name: node for node in graph.node for name in node.output}
    real = {}
    for back in graph.node:
        there = made.get(back.input[0]) if back.op_type == "DequantizeLinear" else None
        if there is not None and there.op_type == "QuantizeLinear":
            real[back.output[0]] = there.input[0]
    for node in graph.node:
        if node.name in nodes:
            node.input[:] = [real.get(name, name) for name in node.input]
    outputs = {value.name for value in graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in graph.node for name in node.input} | outputs
        for node in [node for node in graph.node if node.op_type == kind]:
            if read.isdisjoint(node.output):
                graph.node.remove(node)


def leave_outputs(proto: onnx.ModelProto, final: Iterable[str]) -> None:
    """Take QuantizeLinear and DequantizeLinear away between sums and outputs or final nodes."""
    graph = proto.graph
    final, outputs = set(final), {value.name for value in graph.output}
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for back in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        there = made.get(back.input[0])
        if there is None or there.op_type != "QuantizeLinear":
            continue
        (name,), real = back.output, there.input[0]
        if real not in made or made[real].op_type not in SUMS:
            continue
        wanted = readers.get(name, [])
        if not all(reader.name in final for reader in wanted):
            continue
        graph.node.remove(back)
        if len(readers[there.output[0]]) == 1:
            graph.node.remove(there)
        # The name of an output is part of the model's interface.
        old, new = (real, name) if name in outputs else (name, real)
        for node in graph.node:
            node.input[:] = [new if other == old else other for other in node.input]
            node.output[:] = [new if other == old else other for other in node.output]
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
