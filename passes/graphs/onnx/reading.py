"""What an `onnx_ir.Model` says, as the graph interface asks.

`nmcompile.frontends.onnx_frontend.load` makes such models: weights are initializers (never graph
inputs or Constant nodes), functions are inlined, shapes are inferred.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import (
    Affine,
    Array,
    ConvAttrs,
    Graph,
    Op,
    OpKind,
    Value,
    Weighted,
    unique_name,
)
from nmcompile.passes.graphs.onnx.flow import (
    channel_flow,
    channel_parameters,
    is_product,
    uniform_channels,
)
from nmcompile.passes.graphs.onnx.nodes import (
    LAYER_NORM,
    LAYERS,
    NAME,
    RECURRENT,
    float_attribute,
    int_attribute,
    ints_attribute,
    module_scope,
)
from nmcompile.passes.graphs.onnx.padding import conv_padding
from nmcompile.passes.graphs.onnx.quantised import integers, is_kept
from nmcompile.passes.graphs.onnx.recurrent import weighted_matrices
from nmcompile.passes.graphs.onnx.weights import weighted_node
from nmcompile.passes.graphs.quantised import QuantisedConstant


class OnnxReader(Graph):
    """The half of the adapter that asks; `OnnxGraph` edits."""

    kind = "onnx"

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        # By the constants that a dequantisation reads: passes ask for all weights many times.
        self._known_integers: dict[tuple[Any, ...], QuantisedConstant | None] = {}

    def ops(self) -> list[Op]:
        """All operators of the main graph in topological order; see `Graph.ops`."""
        return [self._op(node) for node in self.model.graph]

    def outputs(self) -> Sequence[Value]:
        """The graph outputs."""
        return list(self.model.graph.outputs)

    def constant(self, value: Value) -> Array | None:
        """The contents of an initializer, or what a dequantisation makes of some.

        bfloat16 is widened to float32.
        """
        array = self.stored(cast(ir.Value, value))
        if array is None and (found := self.integers(value)) is not None:
            return found.real
        return array

    def is_constant(self, value: Value) -> bool:
        """Whether `constant` knows the value, which it then does not compute."""
        return self.stored(cast(ir.Value, value)) is not None or self.integers(value) is not None

    def integers(self, value: Value) -> QuantisedConstant | None:
        """The integers that a constant is stored as; None for all other values."""
        node = cast(ir.Value, value).producer()
        if node is None or not is_kept(node):
            return None
        tensors = (None if entry is None else entry.const_value for entry in node.inputs)
        key = (int_attribute(node, "axis", 1), *tensors)  # which compare by identity
        if key not in self._known_integers:
            self._known_integers[key] = integers(cast(ir.Value, value), self.stored)
        return self._known_integers[key]

    def stored(self, found: ir.Value) -> Array | None:
        """The contents of an initializer."""
        if not found.is_initializer() or found.is_graph_input() or found.const_value is None:
            return None
        array = found.const_value.numpy()
        return array.astype(np.float32) if found.dtype is ir.DataType.BFLOAT16 else array

    def named_constants(self) -> Iterator[tuple[str, Array]]:
        """The initializers."""
        for name, value in self.model.graph.initializers.items():
            if (array := self.constant(value)) is not None:
                yield str(name), array

    def shape(self, value: Value) -> tuple[int, ...] | None:
        """The shape that inference found."""
        shape = cast(ir.Value, value).shape
        return None if shape is None or not shape.is_static() else tuple(shape.numpy())

    def dtype(self, value: Value) -> str | None:
        """The dtype that inference found."""
        found = cast(ir.Value, value).dtype
        return None if found is None else found.numpy().name

    def uses(self, value: Value) -> int:
        """Node inputs, those in subgraphs too, and graph outputs."""
        found = cast(ir.Value, value)
        return len(found.uses()) + sum(output is found for output in self.model.graph.outputs)

    def weighted(self) -> list[Weighted]:
        """See `nmcompile.passes.graphs.onnx.weights`."""
        layers = {id(op.handle) for op in self.ops() if op.kind in ("conv", "linear")}
        taken = {str(node.meta[NAME]) for node in self.model.graph if NAME in node.meta}
        found = []
        for node in self.model.graph:
            if id(node) in layers:
                continue
            named = node.meta.get(NAME)
            if named is not None and node.op_type in RECURRENT:
                found += weighted_matrices(node, self.constant, self.shape)
                continue
            other = weighted_node(node, named and str(named), self.constant, self.shape)
            if other is not None and named is None:
                other = other.called(unique_name(other.name, taken))
            found += [other] if other is not None else []
        return found

    def stored_name(self, constant: Value) -> str:
        """The name of the initializer, of the integers where it is dequantised."""
        value = cast(ir.Value, constant)
        node = value.producer()
        return str(value.name if node is None else cast(ir.Value, node.inputs[0]).name)

    def readers(self, constant: Value) -> int:
        """As `uses`: initializers do not share memory, and integers are not edited in place."""
        return self.uses(constant)

    def _op(self, node: ir.Node) -> Op:
        kind: OpKind = "other"
        name = str(node.meta.get(NAME) or node.name or node.outputs[0].name)
        inputs: tuple[Value, ...] = tuple(value for value in node.inputs if value is not None)
        weight = bias = whole = conv = affine = None
        operator = node.op_type if node.domain == "" else ""
        if operator in LAYERS:
            weight, bias, known = self._weights(node)
            if known and operator == "Conv" and weight is not None:
                conv = self._conv_attrs(node, weight)
            if known and (conv is not None or operator != "Conv"):
                kind, inputs = ("conv" if conv else "linear"), inputs[:1]
                whole = self._whole(node)
            else:
                weight = bias = None
        elif operator == "BatchNormalization":
            affine = self._affine(node)
            kind, inputs = ("batch_norm", inputs[:1]) if affine else (kind, inputs)
            name = module_scope(node) or name
        elif operator in LAYER_NORM:
            affine = self._scale(node)
            kind = kind if affine is None else "layer_norm"
        elif operator in ("Add", "Sum") and len(inputs) > 1:
            kind = "add"
        elif operator == "Identity" or (operator == "Dropout" and self._is_inert(node)):
            kind, inputs = "identity", inputs[:1]
        where = f"{node.op_type} {node.name or node.outputs[0].name}"
        opset = self.model.graph.opset_imports.get("", 0)
        flow = channel_flow(node, kind, self.shape, self.constant, opset)
        parameters = channel_parameters(node, kind, self.constant)
        uniform = uniform_channels(node, self.constant) if flow.by_channel else "unknown"
        read = (weight, bias, whole, conv, affine, flow, parameters, uniform, is_product(node))
        others = tuple(node.outputs[1:]) if flow.pieces else ()
        return Op(kind, name, where, inputs, node.outputs[0], node, *read, others)

    def _weights(self, node: ir.Node) -> tuple[Array | None, Array | None, bool]:
        """Weight, bias, and whether both are constants of a kind the passes can handle."""
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        weight = None if node.inputs[1] is None else self.constant(node.inputs[1])
        bias = None if bias_value is None else self.constant(bias_value)
        known = weight is not None and (bias_value is None or bias is not None)
        if node.op_type != "Conv" and known and weight is not None:
            known = weight.ndim == 2 and not int_attribute(node, "transA", 0)
            known = (
                known
                and float_attribute(node, "alpha", 1.0) == float_attribute(node, "beta", 1.0) == 1.0
            )
            if not int_attribute(node, "transB", 0):
                weight = weight.T
            if bias is not None and known:
                known = bias.size in (1, weight.shape[0]) and bias.ndim < 3
                bias = np.broadcast_to(bias.reshape(-1), weight.shape[:1]) if known else None
        return weight, bias, known

    def _whole(self, node: ir.Node) -> QuantisedConstant | None:
        """What the weight is stored as, outputs first."""
        found = self.integers(node.inputs[1])
        turned = node.op_type != "Conv" and not int_attribute(node, "transB", 0)
        return found.transposed((1, 0)) if found is not None and turned else found

    def _conv_attrs(self, node: ir.Node, weight: Array) -> ConvAttrs | None:
        """The geometry, or None unless two-dimensional with a padding that can be told."""
        if weight.ndim != 4:
            return None
        stride = ints_attribute(node, "strides", (1, 1))
        dilation = ints_attribute(node, "dilations", (1, 1))
        shape = self.shape(cast(ir.Value, node.inputs[0]))
        padding = conv_padding(node, weight.shape[2:], None if shape is None else shape[2:])
        if padding is None:
            return None
        (top, bottom), (left, right) = padding
        groups = int_attribute(node, "group", 1)
        return ConvAttrs(
            (stride[0], stride[1]), (top, left, bottom, right), (dilation[0], dilation[1]), groups
        )

    def _affine(self, node: ir.Node) -> Affine | None:
        if int_attribute(node, "training_mode", 0) or any(v.uses() for v in node.outputs[1:]):
            return None
        found = [None if value is None else self.constant(value) for value in node.inputs[1:5]]
        if len(found) < 4 or any(array is None for array in found):
            return None
        gamma, beta, mean, var = (np.asarray(array, np.float64) for array in found)
        # A negative variance gives NaN, which `check_weights` reports with the layer's name.
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = gamma / np.sqrt(var + float_attribute(node, "epsilon", 1e-5))
        return Affine(scale, beta - mean * scale)

    def _scale(self, node: ir.Node) -> Affine | None:
        """What a layer norm scales and shifts by, None where that is computed, or of more axes."""
        rank = len(cast(ir.Value, node.inputs[0]).shape or ())
        found = [None if value is None else self.constant(value) for value in node.inputs[1:]]
        if not rank or int_attribute(node, "axis", -1) % rank != rank - 1:
            return None
        if not found or any(array is None or array.ndim != 1 for array in found):
            return None
        scale, *rest = (np.asarray(array, np.float64) for array in found)
        return Affine(scale, rest[0] if rest else np.zeros_like(scale))

    def _is_inert(self, dropout: ir.Node) -> bool:
        if any(value.uses() for value in dropout.outputs[1:]):
            return False
        if len(dropout.inputs) < 3 or dropout.inputs[2] is None:
            return True
        training = self.constant(dropout.inputs[2])
        return training is not None and not training.any()
