"""Weights of transposed convolutions in the order of layers, and back."""

from nmcompile.passes.graphs.interface import Array


def outputs_first(weight: Array, groups: int) -> Array:
    """The weight of a transposed convolution, (I, O / groups, ...), as (O, I / groups, ...)."""
    inputs, outputs, *kernel = weight.shape
    split = weight.reshape(groups, inputs // groups, outputs, *kernel)
    return split.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)


def inputs_first(weight: Array, groups: int) -> Array:
    """What `outputs_first` makes its result of."""
    outputs, inputs, *kernel = weight.shape
    split = weight.reshape(groups, outputs // groups, inputs, *kernel)
    return split.swapaxes(1, 2).reshape(groups * inputs, outputs // groups, *kernel)
