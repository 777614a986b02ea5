"""The padding of convolutions, which ONNX may leave for the runtime to find, as numbers."""

from collections.abc import Sequence

import onnx_ir as ir

from nmcompile.passes.graphs.onnx.nodes import ints_attribute

Pairs = list[tuple[int, int]]


def conv_padding(node: ir.Node, kernel: Sequence[int], image: Sequence[int] | None) -> Pairs | None:
    """Elements in front and behind, along each axis of the image.

    Args:
        node: a Conv.
        kernel: its window.
        image: the extents of what it reads; None where they are not known.

    Returns:
        None where that depends on unknown extents.
    """
    ones = (1,) * len(kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * len(kernel)
    if mode == "NOTSET":
        pads = ints_attribute(node, "pads", (0, 0) * len(kernel))
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    stride = ints_attribute(node, "strides", ones)
    if image is None and any(s != 1 for s in stride):
        return None
    spans = [
        d * (k - 1) for d, k in zip(ints_attribute(node, "dilations", ones), kernel, strict=True)
    ]
    totals = [
        max((-(-size // s) - 1) * s + span + 1 - size, 0)
        for size, s, span in zip(image or ones, stride, spans, strict=True)
    ]  # at stride 1 the size cancels out
    return _shared_out(totals, more_at_end=mode == "SAME_UPPER")


def transposed_padding(
    node: ir.Node, kernel: Sequence[int], image: Sequence[int]
) -> tuple[Pairs, list[int]]:
    """What is cut off in front and behind, and what is added behind, along each axis.

    Args:
        node: a ConvTranspose.
        kernel: its window.
        image: the extents of what it reads.
    """
    ones = (1,) * len(kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    stride = ints_attribute(node, "strides", ones)
    dilation = ints_attribute(node, "dilations", ones)
    extra = list(ints_attribute(node, "output_padding", (0,) * len(kernel)))
    wanted = list(ints_attribute(node, "output_shape", ()))
    if not wanted and not mode.startswith("SAME"):
        pads = ints_attribute(node, "pads", (0, 0) * len(kernel))
        if mode == "VALID":
            pads = (0, 0) * len(kernel)
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)), extra
    if not wanted:
        wanted = [size * s for size, s in zip(image, stride, strict=True)]
    totals = [
        s * (size - 1) + e + (k - 1) * d + 1 - out
        for size, k, s, d, e, out in zip(
            image, kernel, stride, dilation, extra, wanted[-len(kernel) :], strict=True
        )
    ]
    # Outputs beyond what the input reaches are padding of the output.
    extra = [e + max(-total, 0) for e, total in zip(extra, totals, strict=True)]
    most = [max(total, 0) for total in totals]
    return _shared_out(most, more_at_end=mode == "SAME_UPPER"), extra


def _shared_out(totals: Sequence[int], *, more_at_end: bool) -> Pairs:
    halves = [(t // 2, t - t // 2) for t in totals]
    return halves if more_at_end else [(large, small) for small, large in halves]
