"""The weights of LSTM and GRU nodes: that of the input and that of the state, as layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array, Layer, Weighted
from nmcompile.passes.graphs.onnx.nodes import weight_names


@dataclass(frozen=True)
class Matrix:
    """A weight of a node: which of its inputs."""

    node: ir.Node
    place: int

    @property
    def shape(self) -> tuple[int, ...]:
        """In which the node has it."""
        value = self.node.inputs[self.place]
        assert value is not None and value.const_value is not None
        return tuple(value.const_value.numpy().shape)


def weighted_matrices(
    node: ir.Node,
    constant: Callable[[ir.Value], Array | None],
    shape: Callable[[ir.Value], tuple[int, ...] | None],
) -> list[Weighted]:
    """W and R as (directions x gates x hidden, inputs), where they are constants.

    What is computed of each is a layer under its name.
    """
    found = []
    x = None if node.inputs[0] is None else shape(node.inputs[0])
    for index, name in enumerate(weight_names(node), 1):
        value = node.inputs[index]
        array = None if value is None else constant(value)
        if array is None or array.ndim != 3:
            reason = "its weight is no constant of three dimensions"
            found.append(Weighted(name, node.op_type, None, reason))
            continue
        weight = np.ascontiguousarray(array.reshape(-1, array.shape[2]))
        macs = None if x is None else x[0] * x[1] * weight.size
        pieces: tuple[Layer, ...] = ()
        if x is not None and len(x) == 3:
            pieces = (_layer(name, weight, x, len(array), recurrent=index > 1),)
        handle = Matrix(node, index) if value is not None and value.is_initializer() else None
        found.append(Weighted(name, node.op_type, weight, "", 1, macs, pieces, handle))
    return found


def _layer(
    name: str, weight: Array, x: tuple[int, ...], directions: int, *, recurrent: bool
) -> Layer:
    """What is computed of a weight: x is (steps, batch, inputs)."""
    steps, batch, inputs = x
    given: tuple[int, ...] = (steps, batch, inputs)
    made: tuple[int, ...] = (steps, batch, len(weight))
    if recurrent:
        given, made = made, (steps, batch, directions, weight.shape[1])
    return Layer(
        name=name,
        op="recurrent" if recurrent else "linear",
        weight=weight,
        bias=None,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        input_shape=given,
        output_shape=made,
        macs=steps * batch * weight.size,
    )
