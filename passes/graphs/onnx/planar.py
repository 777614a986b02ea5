"""Which ONNX operators are plain convolutions of two dimensions in another form."""

from collections.abc import Callable

import onnx_ir as ir

from nmcompile.passes.graphs.frames import plain_form
from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.nodes import int_attribute, ints_attribute
from nmcompile.passes.graphs.onnx.padding import conv_padding, transposed_padding
from nmcompile.passes.graphs.planar import Form, operands


def read_planar(
    node: ir.Node,
    constant: Callable[[ir.Value], Array | None],
    shape: Callable[[ir.Value], tuple[int, ...] | None],
) -> Form | None:
    """The form of a convolution along one axis or three, or of a transposed one along up to three.

    Args:
        node: of the graph.
        constant: the contents of a value.
        shape: that of a value.

    Returns:
        None for other operators, and where the weight is no constant or the shape is not known.
    """
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose"):
        return None
    turned = node.op_type == "ConvTranspose"
    given = [*node.inputs, None][:3]
    if given[0] is None or given[1] is None:
        return None
    known = operands(turned, given[0], given[1], given[2], constant, shape)
    if known is None:
        return None
    data, weight, bias = known
    image, kernel = data[2:], weight.shape[2:]
    lists = {"strides": 1, "dilations": 1, "pads": 2, "output_padding": 1}
    if any(
        len(ints_attribute(node, name, ())) not in (0, n * len(image)) for name, n in lists.items()
    ):
        return None
    ones = (1,) * len(image)
    stride = ints_attribute(node, "strides", ones)
    dilation = ints_attribute(node, "dilations", ones)
    groups = int_attribute(node, "group", 1)
    if turned:
        padding, extra = transposed_padding(node, kernel, image)
        return plain_form(data, weight, bias, stride, padding, dilation, groups, extra)
    found = conv_padding(node, kernel, image)
    if found is None:
        return None
    return plain_form(data, weight, bias, stride, found, dilation, groups, None)
