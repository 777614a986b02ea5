"""The operators of a part that onnxruntime runs, from its ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """A node; reads: what it and its subgraphs take; shape: of its first output, if fixed."""

    name: str
    op: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shape: tuple[int, ...] | None


def read_rest(content: Any) -> tuple[Operator, ...] | None:
    """The operators in the order of the file, constants left out.

    Args:
        content: the bytes of an ONNX file, or None.

    Returns:
        None where there is no file, it is not readable, or onnx is not installed: a runtime alone
        has no need of it.
    """
    if content is None:
        return None
    try:
        import onnx
    except ImportError:
        return None
    try:
        graph = onnx.load_model_from_string(bytes(content)).graph
    except Exception:  # protobuf's implementations raise different ones
        return None
    shapes = {
        value.name: _shape(value) for value in (*graph.value_info, *graph.output, *graph.input)
    }
    return tuple(
        Operator(
            node.name,
            node.op_type,
            tuple(dict.fromkeys(_used(node))),
            tuple(name for name in node.output if name),
            shapes.get(node.output[0]) if node.output else None,
        )
        for node in graph.node
        if node.op_type != "Constant"
    )


def _used(node: Any) -> Iterator[str]:
    """Its inputs, and names in its subgraphs, which are unique in all of the model."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in graph.node:
                yield from _used(inner)
            yield from (value.name for value in graph.output)


def _shape(value: Any) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return None
    return tuple(dim.dim_value for dim in kind.shape.dim)
