"""Bring a graph to operators that are believed in, or say what stands in the way."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from nmcompile.errors import ShapeError, UnsupportedOperatorError
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.axes import list_axes
from nmcompile.passes.operators.onnx.contributed.forms import TRANSFORMERS
from nmcompile.passes.operators.onnx.empty import drop_empty
from nmcompile.passes.operators.onnx.expand import expand
from nmcompile.passes.operators.onnx.integers.forms import FORMS
from nmcompile.passes.operators.onnx.padding import pad_pool, pad_transposed
from nmcompile.passes.operators.onnx.planar import rewrite_planar
from nmcompile.passes.operators.onnx.recurrent import OURS, RECURRENT
from nmcompile.passes.operators.onnx.resize import rewrite_resize
from nmcompile.passes.operators.onnx.rewriting import key
from nmcompile.passes.operators.onnx.softplus import rewrite_softplus
from nmcompile.passes.operators.onnx.steps import rewrite_sign, rewrite_threshold
from nmcompile.passes.operators.onnx.table import TABLE
from nmcompile.passes.operators.table import NOT_THERE


def _rewrite_transposed(graph: OnnxGraph, node: ir.Node) -> str | None:
    if rewrite_planar(graph, node) is None:
        return None
    shape = None if node.inputs[0] is None else graph.shape(node.inputs[0])
    if shape is not None and len(shape) == 5:
        return "along three axes it is computed by constant weights, with a tap for every output"
    return pad_transposed(graph, node)


REWRITES: dict[str, Callable[[OnnxGraph, ir.Node], str | None]] = {
    "AveragePool": pad_pool,
    "Concat": drop_empty,
    "Conv": rewrite_planar,
    "ConvTranspose": _rewrite_transposed,
    "MaxPool": pad_pool,
    "Resize": rewrite_resize,
    "Sign": rewrite_sign,
    "Softplus": rewrite_softplus,
    "Split": drop_empty,
    "Squeeze": list_axes,
    "ThresholdedRelu": rewrite_threshold,
    "Unsqueeze": list_axes,
    **FORMS,
    **RECURRENT,
    **TRANSFORMERS,
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
        reason = rewrite(graph, *found)
        if reason is not None:
            raise UnsupportedOperatorError(f"the model cannot be compiled: {reason}; {ADVICE}")
    for value in graph.model.graph.outputs:
        shape = graph.shape(value)
        if shape is not None and 0 in shape:
            raise ShapeError(
                f"output {value.name} has the shape {shape}; expected dimensions of at least 1: "
                "leave it out of the model"
            )


def doubt(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Why a node is not believed in, as "expected ..., found ...", or None."""
    if node.domain == OURS:
        return None
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


def rewrite(graph: OnnxGraph, node: ir.Node, doubtful: str) -> str | None:
    """Put others in the place of a node that is not believed in, and fold what is constant then.

    Args:
        graph: the model.
        node: in its main graph.
        doubtful: what `doubt` says of it.

    Returns:
        None, or the sentence about the node that says why it is neither believed in nor rewritten.
    """
    form = REWRITES.get(key(node))
    reason = form(graph, node) if form is not None else "no rewriting"
    if reason is not None and not expand(graph.model, node):
        also = "" if form is None or not reason else f" ({reason})"
        return f"{title_of(node)}: {doubtful}{also}"
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph.model)
    ShapeInferencePass(strict_mode=False)(graph.model)
    graph.fold_constants()
    return None


def _first_doubtful(graph: OnnxGraph) -> tuple[ir.Node, str] | None:
    for node in graph.model.graph:
        if (reason := doubt(graph, node)) is not None:
            return node, reason
    return None


def title_of(node: ir.Node) -> str:
    """The operator, and the node by its name or that of its first output."""
    names = [node.name, *(value.name for value in node.outputs)]
    return f"{node.op_type} (node {next((name for name in names if name), '?')})"
