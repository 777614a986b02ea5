"""Which aten operators are plain convolutions of two dimensions in another form."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from nmcompile.passes.graphs.frames import plain_form
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.planar import Form, operands

aten = torch.ops.aten

CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}
TRANSPOSED = {
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}


def read_planar(
    node: fx.Node,
    constant: Callable[[fx.Node], Array | None],
    shape: Callable[[fx.Node], tuple[int, ...] | None],
) -> Form | None:
    """The form of a convolution along one axis or three, or of a transposed one along up to three.

    Args:
        node: of the graph.
        constant: the contents of a value.
        shape: that of a value.

    Returns:
        None for other operators, and where the weight is no constant or the shape is not known.
    """
    if node.target not in CONVOLUTIONS | TRANSPOSED | {aten.convolution.default}:
        return None
    given = arguments_of(node)
    turned = node.target in TRANSPOSED or bool(given.get("transposed", False))
    known = operands(turned, given["input"], given["weight"], given["bias"], constant, shape)
    if known is None:
        return None
    data, weight, bias = known
    axes, groups = weight.ndim - 2, int(given["groups"])
    stride, dilation = _each(given["stride"], axes), _each(given["dilation"], axes)
    if isinstance(given["padding"], str):
        same = given["padding"] == "same"
        kernel = weight.shape[2:]
        spans = [d * (k - 1) if same else 0 for d, k in zip(dilation, kernel, strict=True)]
        padding = [(span // 2, span - span // 2) for span in spans]
    else:
        padding = [(size, size) for size in _each(given["padding"], axes)]
    extra = _each(given["output_padding"], axes) if turned else None
    return plain_form(data, weight, bias, stride, padding, dilation, groups, extra)


def _each(value: int | Sequence[Any], axes: int) -> list[int]:
    """One number for each axis, where torch takes one for all."""
    found = [value] if isinstance(value, int) else [int(entry) for entry in value]
    return found * axes if len(found) == 1 else found
