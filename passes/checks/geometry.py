"""Refuse convolutions that cannot be computed: no importer checks all of this."""

from nmcompile.errors import ModelError, ShapeError
from nmcompile.passes.graphs.interface import Graph, Layer
from nmcompile.wording import way


def check_geometry(graph: Graph) -> None:
    """Check groups, channels and window of every convolution.

    Raises:
        ModelError: the groups or channels do not fit together; names the layer.
        ShapeError: the window is larger than the padded image; names the layer.
    """
    for layer in graph.layers():
        if layer.op == "conv2d":
            _check(layer)


def _check(layer: Layer) -> None:
    outputs, channels, *kernel = layer.weight.shape
    if layer.groups < 1 or outputs % layer.groups:
        raise ModelError(
            f"layer {layer.name}: expected a number of groups that divides its {outputs} output "
            f"channels, found {layer.groups}; export the model again"
        )
    if layer.input_shape is None:
        return
    _, found, *image = layer.input_shape
    if found != channels * layer.groups:
        raise ModelError(
            f"layer {layer.name}: its weight of shape {layer.weight.shape} and {layer.groups} "
            f"groups expect {channels * layer.groups} input channels, found {found}; export the "
            f"model again, or correct {way('--shape', 'shapes')}"
        )
    for size, window, dilation, before, after in zip(
        image, kernel, layer.dilation, layer.padding[:2], layer.padding[2:], strict=True
    ):
        extent = (window - 1) * dilation + 1
        if extent > size + before + after:
            raise ShapeError(
                f"layer {layer.name}: its window spans {extent} pixels, the padded image has only "
                f"{size + before + after}; compile the model for larger images"
            )
