"""Padding that is left for the runtime to find, as numbers."""

from collections.abc import Sequence

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.graphs.onnx.padding import transposed_padding
from nmcompile.passes.operators.onnx.limits import attribute


def pad_pool(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Write the SAME padding of a pooling window as `pads`.

    Returns:
        None, or the reason why that cannot be done.
    """
    if not str(attribute(node, "auto_pad", "NOTSET")).startswith("SAME"):
        return "its auto_pad is not SAME"
    shape = graph.shape(node.inputs[0]) if node.inputs[0] is not None else None
    if shape is None:
        return "its input has no fixed shape"
    window = attribute(node, "kernel_shape")
    strides = attribute(node, "strides", (1,) * len(window))
    dilations = attribute(node, "dilations", (1,) * len(window))
    totals = [
        max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        for size, k, s, d in zip(shape[2:], window, strides, dilations, strict=True)
    ]
    _write(node, totals, more_at_end=attribute(node, "auto_pad") == "SAME_UPPER")
    return None


def pad_transposed(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Write the padding of a ConvTranspose that its `output_shape` or `auto_pad` asks for.

    Returns:
        None, or the reason why that cannot be done.
    """
    mode = str(attribute(node, "auto_pad", "NOTSET"))
    if attribute(node, "output_shape") is None and not mode.startswith("SAME"):
        return "it has neither an output_shape nor SAME padding"
    shapes = [graph.shape(value) for value in node.inputs[:2] if value is not None]
    if len(shapes) != 2 or shapes[0] is None or shapes[1] is None:
        return "its input has no fixed shape"
    padding, extra = transposed_padding(node, shapes[1][2:], shapes[0][2:])
    if any(extra):
        node.attributes["output_padding"] = ir.AttrInt64s("output_padding", extra)
    node.attributes.pop("output_shape", None)
    node.attributes.pop("auto_pad", None)
    begin, end = zip(*padding, strict=True)
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])
    return None


def _write(node: ir.Node, totals: Sequence[int], *, more_at_end: bool) -> None:
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    pads = [*small, *large] if more_at_end else [*large, *small]
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
