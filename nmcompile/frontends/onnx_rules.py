"""Nodes whose inputs contradict what their operator allows, found by ONNX's own inference."""

import onnx
import onnx_ir as ir

from nmcompile.errors import ModelError


def check_nodes(model: ir.Model, title: str) -> None:
    """Ask ONNX again for every type that inference left open: it passes over nodes that fail.

    Raises:
        ModelError: a node breaks a rule of its operator; names the first one and the rule.
    """
    opsets = [onnx.helper.make_opsetid(*entry) for entry in model.graph.opset_imports.items()]
    for node in model.graph:
        open_ = any(value.name and value.dtype is None for value in node.outputs)
        types = _types(node)
        if not open_ or types is None or node.domain != "" or _has_graphs(node):
            continue
        version = model.graph.opset_imports[""]
        schema = onnx.defs.get_schema(node.op_type, version, "")
        proto = ir.serde.serialize_node(node)
        try:
            onnx.shape_inference.infer_node_outputs(schema, proto, types, opset_imports=opsets)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            name = node.name or node.outputs[0].name
            raise ModelError(
                f"{title} is not a valid ONNX model: {node.op_type} (node {name}): {error}; "
                "export it again"
            ) from error


def _types(node: ir.Node) -> dict[str, onnx.TypeProto] | None:
    """The types of the inputs by name, or None where one is not known either."""
    found = {}
    for value in node.inputs:
        if value is None:
            continue
        if value.dtype is None or value.shape is None:
            return None
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        found[str(value.name)] = onnx.helper.make_tensor_type_proto(int(value.dtype), dims)
    return found


def _has_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())
