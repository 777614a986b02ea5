"""Bring a graph to operators that are believed in, or say what stands in the way."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from nmcompile.errors import ShapeError, UnsupportedOperatorError
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.axes import list_axes
from nmcompile.passes.operators.onnx.expand import expand
from nmcompile.passes.operators.onnx.integers.forms import FORMS, key
from nmcompile.passes.operators.onnx.padding import pad_pool, pad_transposed
from nmcompile.passes.operators.onnx.resize import rewrite_resize
from nmcompile.passes.operators.onnx.softplus import rewrite_softplus
from nmcompile.passes.operators.onnx.steps import rewrite_sign, rewrite_threshold
from nmcompile.passes.operators.onnx.table import TABLE
from nmcompile.passes.operators.table import NOT_THERE

REWRITES: dict[str, Callable[[OnnxGraph, ir.Node], str | None]] = {
    "AveragePool": pad_pool,
    "ConvTranspose": pad_transposed,
    "MaxPool": pad_pool,
    "Resize": rewrite_resize,
    "Sign": rewrite_sign,
    "Softplus": rewrite_softplus,
    "Squeeze": list_axes,
    "ThresholdedRelu": rewrite_threshold,
    "Unsqueeze": list_axes,
    **FORMS,
}
"""What expresses an operator in others where it is not believed in as it is.

By its name, with the domain in front where that is not ONNX's own.
"""

ADVICE = "replace the operator, or export the model without that part"


def settle(graph: OnnxGraph) -> None:
    """Rewrite what is not believed in, in place, until all of the graph is.

    Raises:
        UnsupportedOperatorError: an operator is neither believed in nor can be expressed in
            others; names the node, the operator, what was expected and what was found.
        ShapeError: an output has no elements.
    """
    graph.fold_constants()
    while (found := _first_doubtful(graph)) is not None:
        node, doubt = found
        rewrite = REWRITES.get(key(node))
        reason = rewrite(graph, node) if rewrite is not None else "no rewriting"
        if reason is not None and not expand(graph.model, node):
            also = "" if rewrite is None else f" ({reason})"
            raise UnsupportedOperatorError(f"{_title(graph, node)}: {doubt}{also}; {ADVICE}")
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
        ShapeInferencePass(strict_mode=False)(graph.model)
        graph.fold_constants()
    for value in graph.model.graph.outputs:
        shape = graph.shape(value)
        if shape is not None and 0 in shape:
            raise ShapeError(
                f"output {value.name} has the shape {shape}; expected dimensions of at least 1: "
                "leave it out of the model"
            )


def doubt(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Why a node is not believed in, as "expected ..., found ...", or None."""
    row = TABLE.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if row is None:
        return NOT_THERE
    version = graph.model.graph.opset_imports.get(node.domain, 0)
    since = onnx.defs.get_schema(node.op_type, version, "").since_version
    if not row.oldest <= since <= row.newest:
        return (
            f"expected a version of it from {row.oldest} to {row.newest}, found {since} "
            f"(opset {version})"
        )
    carrier = next((value for value in node.inputs if value is not None), node.outputs[0])
    return row.doubt(graph, node, graph.dtype(carrier))


def _first_doubtful(graph: OnnxGraph) -> tuple[ir.Node, str] | None:
    for node in graph.model.graph:
        if (reason := doubt(graph, node)) is not None:
            return node, reason
    return None


def _title(graph: OnnxGraph, node: ir.Node) -> str:
    return (
        f"the model cannot be compiled: {node.op_type} (node {node.name or node.outputs[0].name})"
    )
