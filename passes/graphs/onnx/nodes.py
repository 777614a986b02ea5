"""Reading single ONNX nodes: attributes with defaults, and the modules that they came from."""

import ast
import contextlib
import re
from collections.abc import Sequence

import onnx_ir as ir

from nmcompile.passes.graphs.interface import weight_owner

NAME = "nmcompile_name"
"""The key of node metadata under which a layer keeps its name."""
LAYERS = ("Conv", "Gemm", "MatMul")
LAYER_NORM = ("LayerNormalization", "RMSNormalization")
RECURRENT = ("LSTM", "GRU")
NAMED = (*LAYERS, "ConvTranspose", *RECURRENT)
"""What is named by its weight."""
MATRICES = ("W", "R")
"""Behind the name of a recurrent layer, that of its weights: of the input, and of the state."""

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
"""Types of attributes that hold subgraphs."""


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    return int(node.attributes.get_int(name, default))


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    return float(node.attributes.get_float(name, default))


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> Sequence[int]:
    """A list attribute, or its default."""
    return [int(i) for i in node.attributes.get_ints(name, tuple(default))]


def layer_name(node: ir.Node) -> str:
    """The weight's name through whatever computes it, else the module path in the node's name."""
    layer, seen = [node.inputs[1]], set[ir.Value | None]()
    while layer:
        for value in layer:
            # onnxruntime's quantiser calls the integers of a.weight so.
            name = str(value.name if value else "").removesuffix("_quantized")
            owner = weight_owner(name)
            if owner and value is not None and value.is_initializer():
                return owner
        seen.update(layer)
        producers = [value.producer() for value in layer if value is not None]
        following = [v for p in producers if p is not None for v in p.inputs if v not in seen]
        layer = list(dict.fromkeys(following))
    return module_scope(node) or str(node.name or next(v.name for v in node.outputs if v.name))


def weight_names(node: ir.Node) -> tuple[str, ...]:
    """The names of a node's weights as layers: its own, or one for each matrix; () of others."""
    name = node.meta.get(NAME)
    if name is None:
        return ()
    if node.op_type in RECURRENT:
        return tuple(f"{name}.{matrix}" for matrix in MATRICES)
    return (str(name),)


def module_scope(node: ir.Node) -> str:
    """The module path that torch's exporters leave in a node, or ""."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    with contextlib.suppress(ValueError, SyntaxError, IndexError, TypeError):
        # torch's dynamo exporter: ['', 'layer1.0', 'layer1.0.conv1', 'conv2d_3'].
        scope = ast.literal_eval(scopes)[-2]
        if isinstance(scope, str) and scope:
            return scope
    # torch's legacy exporter: /layer1/layer1.0/conv1/Conv is module layer1.0.conv1.
    path = re.fullmatch(rf"/(.+)/{node.op_type}(?:_\d+)?", node.name or "")
    if path is None:
        return ""
    parts: list[str] = []
    for part in path[1].split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
