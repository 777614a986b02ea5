"""The float model that is quantised: folded, as ONNX, every layer a node of the layer's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir

from nmcompile.errors import ModelError
from nmcompile.folding import open_checked, open_folded
from nmcompile.frontends import SourceModel
from nmcompile.frontends.onnx_export import onnx_bytes
from nmcompile.layer_names import LayerNames
from nmcompile.passes.checks.dtypes import check_dtypes
from nmcompile.passes.graphs.interface import Graph, Layer, unique_name
from nmcompile.progress import Progress, silent

OPSET = 13
"""The first whose QuantizeLinear takes a scale per channel."""

_INTEGER = re.compile(r"quantize|^QLinear|^QGemm|Integer\b", re.IGNORECASE)

PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class FoldedModel:
    """A model as it is calibrated.

    title: what messages call it.
    proto: with a name for every node; that of a layer is the layer's name.
    layers: as `nmc inspect` lists them, here and in what is quantised.
    inputs: name, shape and numpy dtype name.
    others: nodes that multiply, but are no layers: they stay in float32.
    """

    title: str
    proto: onnx.ModelProto
    layers: tuple[Layer, ...]
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    others: tuple[str, ...]


def fold_for_quantization(
    model: Any,
    example_inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = silent,
) -> FoldedModel:
    """Fold a model and bring it into the form that onnxruntime's tools quantise.

    Args:
        model: as for `nmcompile.compile`.
        example_inputs: as for `nmcompile.compile`.
        shapes: as for `nmcompile.compile`.
        progress: told about every stage.

    Raises:
        ModelError: it cannot be read, computes in another precision than float32, is quantised
            already, or has no layer to quantise.
    """
    source, _ = open_folded(model, example_inputs, shapes=shapes, progress=progress)
    check_dtypes(source.graph, {name: dtype for name, _, dtype in source.inputs})
    _check_float(source)
    names = LayerNames(source.graph.layers())
    progress("exporting to ONNX")
    # Folded again: the exporter computes paddings from constants.
    again, _ = open_folded(onnx.load_model_from_string(onnx_bytes(source)), smaller=False)
    ready = ir.to_proto(_fused(again.native()))
    exported = open_checked(_at_opset(ready, source.title))
    graph = exported.graph
    products = {id(op.handle): op for op in graph.ops() if op.kind in ("conv", "linear")}
    layers = {layer.name: layer for layer in graph.layers()}
    taken: set[str] = set()
    named: dict[int, str] = {}
    found = []
    for op in products.values():
        layer = layers[op.name]
        name = unique_name(names.find(layer.weight) or layer.name, taken)
        named[id(op.handle)] = name
        found.append(replace(layer, name=name))
    if not found:
        raise ModelError(
            f"{source.title} has no convolution or matrix product with constant weights: there is "
            "nothing to quantise"
        )
    others = []
    for op in graph.ops():
        node: ir.Node = op.handle
        node.name = named.get(id(node)) or unique_name(str(node.name or node.op_type), taken)
        if id(node) not in named and node.op_type in PRODUCTS:
            others.append(node.name)
    _name_weights(exported.graph, named)
    proto, inputs = exported.native(), exported.inputs
    return FoldedModel(source.title, proto, tuple(found), inputs, tuple(others))


def _name_weights(graph: Graph, named: Mapping[int, str]) -> None:
    """Weights are called after their layers, which are so found again in the quantised file."""
    taken = {name for name, _ in graph.named_constants()}
    for op in graph.ops():
        weight = op.handle.inputs[1] if id(op.handle) in named else None
        if weight is not None and len(weight.uses()) == 1:
            wanted = f"{named[id(op.handle)]}.weight"
            if weight.name != wanted:
                weight.name = unique_name(wanted, taken)


def outputs_first(node: onnx.NodeProto) -> bool:
    """Whether the first axis of a product's weight is that of its outputs; else the last is."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return node.op_type == "Conv" or turned


def _check_float(source: SourceModel) -> None:
    for op in source.graph.ops():
        if op.integers is not None or _INTEGER.search(op.where):
            raise ModelError(
                f"{source.title} is quantised already: expected a float32 model, found integers at "
                f"{op.where}; compile it as it is"
            )


def _fused(proto: onnx.ModelProto) -> ir.Model:
    """Paddings inside of convolutions, and biases inside of matrix products.

    Of its own each would be rounded to 8 bits.
    """
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule, matmul_add_to_gemm_rule

    model = ir.from_proto(proto)
    RewriteRuleSet([fuse_pad_into_conv_rule, matmul_add_to_gemm_rule]).apply_to_model(model)
    return model


def _at_opset(proto: onnx.ModelProto, title: str) -> onnx.ModelProto:
    found = next((entry.version for entry in proto.opset_import if not entry.domain), OPSET)
    if found >= OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise ModelError(
            f"{title} uses ONNX opset {found}: expected {OPSET} or later, and conversion fails "
            f"({error}); export it again with a newer opset"
        ) from error
