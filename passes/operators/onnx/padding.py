"""Padding that is left for the runtime to find, as numbers."""

from collections.abc import Sequence

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
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
    wanted = attribute(node, "output_shape")
    shapes = [graph.shape(value) for value in node.inputs[:2] if value is not None]
    if wanted is None and not mode.startswith("SAME"):
        return "it has neither an output_shape nor SAME padding"
    if len(shapes) != 2 or shapes[0] is None or shapes[1] is None:
        return "its input has no fixed shape"
    image, window = shapes[0][2:], shapes[1][2:]
    ones = (1,) * len(image)
    strides = attribute(node, "strides", ones)
    dilations = attribute(node, "dilations", ones)
    extra = attribute(node, "output_padding", (0,) * len(image))
    if wanted is None:
        wanted = tuple(size * s for size, s in zip(image, strides, strict=True))
    wanted = wanted[-len(image) :]
    totals = [
        s * (size - 1) + e + (k - 1) * d + 1 - out
        for size, k, s, d, e, out in zip(
            image, window, strides, dilations, extra, wanted, strict=True
        )
    ]
    # Outputs beyond what the input reaches are padding of the output.
    short = [max(-total, 0) for total in totals]
    if any(short):
        node.attributes["output_padding"] = ir.AttrInt64s(
            "output_padding", [e + more for e, more in zip(extra, short, strict=True)]
        )
    node.attributes.pop("output_shape", None)
    _write(node, [max(total, 0) for total in totals], more_at_end=mode == "SAME_UPPER")
    return None


def _write(node: ir.Node, totals: Sequence[int], *, more_at_end: bool) -> None:
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    pads = [*small, *large] if more_at_end else [*large, *small]
    node.attributes.pop("auto_pad", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
