"""Operators in place of which ONNX itself gives a graph of simpler ones."""

from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from nmcompile.passes.graphs.interface import unique_name
from nmcompile.passes.graphs.onnx.nodes import GRAPHS

DOMAIN = "nmcompile.expanded"


def expand(model: ir.Model, node: ir.Node) -> bool:
    """Put an operator's function body in its place; says whether it has one.

    The body is taken for the model's own version of the operator set, with the types that this
    node has, and the operators in it are then part of the graph like any others.
    """
    if any(attribute.type in GRAPHS for attribute in node.attributes.values()):
        return False
    version = model.graph.opset_imports.get(node.domain)
    function = _body(node, version, model) if version is not None else None
    if function is None:
        return False
    name = unique_name(node.op_type, {identifier[1] for identifier in model.functions})
    function.domain, function.name = DOMAIN, name
    _make_outputs(function, len(node.outputs))
    title = node.name or node.outputs[0].name
    for inner in function.node:  # messages about them name the node that they stand for
        inner.name = f"{title}/{inner.op_type}"
    body = ir.serde.deserialize_function(function)
    for domain, needed in body.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, needed)
        body.opset_imports[domain] = model.graph.opset_imports[domain]
    model.functions[body.identifier()] = body
    model.graph.opset_imports[DOMAIN] = 1
    node.domain, node.op_type, node.overload = DOMAIN, name, ""
    InlinePass()(model)
    model.functions.pop(body.identifier(), None)
    model.graph.opset_imports.pop(DOMAIN, None)
    return True


def _make_outputs(function: onnx.FunctionProto, count: int) -> None:
    """Let a body have as many outputs as the node: it leaves out some that nobody reads."""
    made = {name for inner in function.node for name in inner.output}
    del function.output[count:]
    for name in function.output:
        if name not in made:
            function.node.append(onnx.helper.make_node("Identity", [function.output[0]], [name]))


def _body(node: ir.Node, version: int, model: ir.Model) -> onnx.FunctionProto | None:
    try:
        # What the installed stubs say of schemas is behind the library.
        schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None
    text = b""
    if schema.has_function:
        known = [v for v in schema.function_opset_versions if v <= version]
        text = schema.get_function_with_opset_version(max(known)) if known else b""
    elif schema.has_context_dependent_function:
        known = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        types = [_type(value) for value in node.inputs]
        if known:
            text = schema.get_context_dependent_function_with_opset_version(
                max(known), ir.serde.serialize_node(node).SerializeToString(), types
            )
    if not text:
        return None
    found = onnx.FunctionProto()
    found.ParseFromString(text)
    uses = {entry.domain: entry.version for entry in found.opset_import}
    # A body that is written in older operators must mean the same in the model's.
    ours = model.graph.opset_imports.get("", version)
    for inner in found.node:
        if inner.domain == "" and not _alike(inner.op_type, uses.get("", ours), ours):
            return None
    return found


def _alike(operator: str, written: int, version: int) -> bool:
    """Whether a later version of an operator takes the same inputs and attributes."""
    old, new = (onnx.defs.get_schema(operator, v, "") for v in (written, version))
    return set(old.attributes) <= set(new.attributes) and len(old.inputs) <= len(new.inputs)


def _type(value: ir.Value | None) -> bytes:
    proto = onnx.TypeProto()
    if value is not None and value.type is not None:
        proto.tensor_type.elem_type = int(value.dtype or 0)
    if value is not None and value.shape is not None and value.shape.is_static():
        proto.tensor_type.shape.SetInParent()
        for extent in value.shape.numpy():
            proto.tensor_type.shape.dim.add().dim_value = extent
    return bytes(proto.SerializeToString())
