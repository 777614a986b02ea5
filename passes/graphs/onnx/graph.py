"""The graph interface over an `onnx_ir.Model`.

`nmcompile.frontends.onnx_frontend.load` makes such models: weights are initializers (never graph
inputs or Constant nodes), functions are inlined, shapes are inferred.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from nmcompile.passes.graphs.interface import (
    Array,
    Op,
    Value,
    Weighted,
    unique_name,
)
from nmcompile.passes.graphs.onnx.branches import inline_branch
from nmcompile.passes.graphs.onnx.constants import RANDOM, evaluate
from nmcompile.passes.graphs.onnx.nodes import (
    GRAPHS,
    NAME,
    NAMED,
    RECURRENT,
    int_attribute,
    layer_name,
)
from nmcompile.passes.graphs.onnx.products import add_behind, settle_products
from nmcompile.passes.graphs.onnx.quantised import is_kept, is_packed, is_view, viewed
from nmcompile.passes.graphs.onnx.reading import OnnxReader
from nmcompile.passes.graphs.onnx.recurrent import Matrix
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.passes.graphs.transposed import inputs_first


class OnnxGraph(OnnxReader):
    """Edits the model it is given; weights that change become new initializers of it."""

    def __init__(self, model: ir.Model) -> None:
        """Take over `model` and name its layers."""
        super().__init__(model)
        self._name_layers()

    def native(self) -> onnx.ModelProto:
        """The model as a protobuf, weights included."""
        return ir.to_proto(self.model)

    def copy(self) -> "OnnxGraph":
        """A copy that shares the contents of the weights (which are never written to)."""
        return OnnxGraph(self.model.clone())

    def replace(self, old: Value, new: Value) -> None:
        """Rewire the readers of `old`; a graph output keeps its name."""
        source, target = cast(ir.Value, old), cast(ir.Value, new)
        producer, graph = source.producer(), self.model.graph
        if source.is_graph_output():
            # The name of an output is part of the model's interface: `new` takes it over, or is
            # copied under it where it has a name to keep.
            assert producer is not None
            name, result = source.name, target
            source.name = unique_name(f"{name}_replaced", self.value_names())
            if target.producer() is None or target.is_graph_output():
                copied = ir.node("Identity", [target], name=f"{name}_output")
                result = copied.outputs[0]
                result.shape, result.type = source.shape, source.type
                graph.insert_after(producer, copied)
            result.name = name
            for index, output in enumerate(graph.outputs):
                if output is source:
                    graph.outputs[index] = result
        source.replace_all_uses_with(target)

    def drop_operand(self, op: Op, index: int) -> None:
        """Add becomes its other operand; Sum loses one of its inputs."""
        node: ir.Node = op.handle
        kept = [value for i, value in enumerate(node.inputs) if i != index]
        if len(kept) == 1:
            self.replace(op.output, kept[0])
            return
        for i, value in enumerate(kept):
            node.replace_input_with(i, value)
        node.resize_inputs(len(kept))

    def set_weight(self, op: Op, weight: Array, bias: Array | None) -> None:
        """Store new initializers under the layer's name; matrix products become Gemm."""
        node: ir.Node = op.handle
        old = cast(ir.Value, node.inputs[1])
        before = self.constant(old)
        assert before is not None
        dtype = before.dtype
        source = None if op.integers is None else op.integers.holding(weight)
        turned = op.kind == "linear" and not int_attribute(node, "transB", 0)
        if node.op_type == "MatMul" and bias is not None:
            known = self.shape(op.inputs[0])
            if known is None or len(known) != 2:
                add_behind(self, node, op.name, bias.astype(dtype))  # Gemm takes matrices only
                bias = None
        if op.kind == "linear" and not (node.op_type == "MatMul" and bias is None):
            node.op_type, turned = "Gemm", False
            node.attributes["transB"] = ir.AttrInt64("transB", 1)
        name = f"{op.name}.weight"
        if source is not None:
            held = source.transposed((1, 0)) if turned else source
            assert held is not None
            made = self._dequantised(node, name, held)
        else:
            made = self.new_constant(name, (weight.T if turned else weight).astype(dtype))
        node.resize_inputs(2 if bias is None else 3)
        node.replace_input_with(1, made)
        if bias is not None:
            node.replace_input_with(2, self.new_constant(f"{op.name}.bias", bias.astype(dtype)))
        self.sweep()
        self._settle_names([node])

    def drop_affine(self, op: Op) -> None:
        """The operator wants a scale, if only of ones."""
        node: ir.Node = op.handle
        before = self.constant(cast(ir.Value, node.inputs[1]))
        assert before is not None
        node.replace_input_with(1, self.new_constant(f"{op.name}.scale", np.ones_like(before)))
        node.resize_inputs(2)
        self.sweep()

    def set_other_weight(self, other: Weighted, weight: Array) -> None:
        """Store a new initializer under the operator's name."""
        matrix = isinstance(other.handle, Matrix)
        held: Matrix = other.handle if matrix else Matrix(other.handle, 1)
        turned = held.node.op_type == "ConvTranspose"
        array = inputs_first(weight, other.groups) if turned else weight
        name = other.name if matrix else f"{other.name}.weight"
        made = self.new_constant(name, array.reshape(held.shape))
        held.node.replace_input_with(held.place, made)
        self.sweep()
        self._settle_names([held.node])

    def reorder(self, constant: Value, axis: int, order: Array) -> None:
        """Give the initializer a reordered tensor; other graphs keep the old one."""
        value, source = cast(ir.Value, constant), self.integers(constant)
        producer = value.producer()
        if source is not None and producer is not None:
            moved = source.reordered(axis, order)
            self._read_integers(producer, str(value.name), moved)
            value.shape = ir.Shape(moved.values.shape)
            self.sweep()
            return
        assert value.const_value is not None
        changed = np.take(value.const_value.numpy(), order, axis)
        value.const_value = ir.tensor(changed, dtype=value.const_value.dtype, name=value.name)
        value.shape = ir.Shape(changed.shape)

    def resize(self, op: Op, shape: tuple[int, ...]) -> None:
        """Record the shape; Reshape, Resize and the group of Conv are given it."""
        node: ir.Node = op.handle
        place = {"Reshape": 1, "Resize": 3}.get(node.op_type)
        if place is not None and len(node.inputs) > place and node.inputs[place] is not None:
            sizes = self.new_constant(f"{node.outputs[0].name}_shape", np.array(shape, np.int64))
            node.replace_input_with(place, sizes)
        if op.groups > 1:
            node.attributes["group"] = ir.AttrInt64("group", shape[1])
        node.outputs[0].shape = ir.Shape(shape)

    def evaluate(self, op: Op, inputs: Mapping[Value, Array]) -> Array | None:
        """Run the node by itself."""
        node: ir.Node = op.handle
        known = [value for value in node.inputs if value is not None]
        if any(value not in inputs and not self.is_constant(value) for value in known):
            return None
        feeds = {
            cast(ir.Value, value): array.astype(_numpy_dtype(cast(ir.Value, value)))
            for value, array in inputs.items()
        }
        results = self._evaluate(node, feeds)
        return None if results is None else results[0]

    def fold_constants(self) -> list[str]:
        """Evaluate nodes whose inputs are constants, and shapes that are known."""
        gone: list[str] = []
        while found := [
            *self._move_dequantisation(),
            *self._fold_constants_once(),
            *self._take_branches(),
        ]:
            gone += found
            nodes = self.model.graph
            if any(self.shape(value) is None for node in nodes for value in node.outputs):
                # Paddings and target shapes that were computed are known now, and more behind them.
                ShapeInferencePass(strict_mode=False)(self.model)
        return gone

    def _move_dequantisation(self) -> list[str]:
        """Apply views of dequantised constants to the integers, and widen narrow ones.

        Returns the names of the nodes concerned.
        """
        moved = []
        for node in list(self.model.graph):
            packed = self.integers(node.outputs[0]) if is_packed(node) else None
            if packed is not None:
                # Kernels and operator sets begin at 8 bits.
                self._read_integers(node, str(node.outputs[0].name), packed)
                moved.append(str(node.name or node.op_type))
            data = (
                node.inputs[0] if is_view(node) and not node.outputs[0].is_graph_output() else None
            )
            source = None if data is None else self.integers(data)
            if data is None or source is None:
                continue
            seen = viewed(node, source, self.shape(node.outputs[0]))
            if seen is not None:
                self.replace(node.outputs[0], self._dequantised(node, str(data.name), seen))
                moved.append(str(node.name or node.op_type))
        if moved:
            self.sweep()
        return moved

    def _dequantised(self, before: ir.Node, name: str, found: QuantisedConstant) -> ir.Value:
        """New integers with a dequantisation, which stands in front of a node."""
        axis = {"axis": found.axis} if found.per_slice else {}
        made = ir.node("DequantizeLinear", [None] * 3, axis, name=f"{name}_dequantize")
        self._read_integers(made, name, found)
        result = made.outputs[0]
        result.name = unique_name(f"{name}_dequantized", self.value_names())
        result.shape, result.type = ir.Shape(found.values.shape), ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.insert_before(before, made)
        return result

    def _take_branches(self) -> list[str]:
        """Replace every If whose condition is constant; returns their names."""
        taken = []
        for node in list(self.model.graph):
            condition = node.inputs[0] if node.domain == "" and node.op_type == "If" else None
            known = None if condition is None else self.constant(condition)
            if known is None:
                continue
            results = inline_branch(
                self.model.graph, node, bool(known.all()), self.value_names(), self.new_constant
            )
            for old, new in zip(list(node.outputs), results, strict=True):
                self.replace(old, new)
            self.model.graph.remove(node, safe=True)
            taken.append(str(node.name or node.op_type))
        if taken:
            self._name_layers()
        return taken

    def _read_integers(self, node: ir.Node, name: str, found: QuantisedConstant) -> None:
        """Let a dequantisation read new integers."""
        node.resize_inputs(3)
        parts = {"quantized": found.values, "scale": found.scale, "zero_point": found.zero}
        for index, (part, array) in enumerate(parts.items()):
            node.replace_input_with(index, self.new_constant(f"{name}_{part}", array))

    def _fold_constants_once(self) -> list[str]:
        graph, gone = self.model.graph, list[str]()
        constants: dict[ir.Value, Array] = {}
        foldable = [node for node in graph if self._mark_constant(node, constants)]
        # Results are dropped after their last reader: the masks of a network would not fit.
        waiting = Counter(v for node in foldable for v in set(node.inputs) if v is not None)
        marked, failed = set(foldable), set[ir.Value]()
        taken = self.value_names()
        for node in foldable:
            results = None
            if failed.isdisjoint(v for v in node.inputs if v is not None):
                results = self._evaluate(node, constants)
            for value in set(node.inputs):
                if value is not None:
                    waiting[value] -= 1
            if results is None:
                failed.update(node.outputs)
                self._keep_alive(node, constants, taken)
            else:
                gone.append(node.name or node.op_type)
                constants.update(zip(node.outputs, results, strict=True))
                for value in node.outputs:
                    if value.is_graph_output():
                        kept = self.new_constant(f"{value.name}", constants[value], taken)
                        self.replace(value, kept)
                    elif any(user not in marked for user, _ in value.uses()):
                        self._materialise(value, constants, taken)
            for value in [*node.inputs, *node.outputs]:
                if value is not None and not waiting[value]:
                    constants.pop(value, None)
        self.sweep()
        self._settle_names(list(graph))
        return gone

    def settle_products(self) -> list[str]:
        """See `products`."""
        return settle_products(self)

    def sweep(self) -> int:
        """Erase nodes without readers and unused initializers."""
        graph, erased = self.model.graph, 0
        for node in reversed(list(graph)):
            if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
                graph.remove(node, safe=True)
                erased += 1
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
        return erased

    def check(self) -> None:
        """The checker of the onnx package, with full shape inference, has no complaint."""
        try:
            onnx.checker.check_model(self.native(), full_check=True)
        except Exception as error:
            raise AssertionError(f"onnx checker: {error}") from error

    def _mark_constant(self, node: ir.Node, constants: dict[ir.Value, Array]) -> bool:
        """Whether the node can be computed now; its outputs are then keys of `constants`."""
        if node.domain != "" or node.op_type in RANDOM:
            return False
        if any(attr.type in GRAPHS for attr in node.attributes.values()):
            return False
        if node.op_type == "Identity" and node.outputs[0].is_graph_output():
            return False  # what makes a constant an output
        data = node.inputs[0] if node.inputs else None
        static = node.op_type in ("Shape", "Size") and self.shape(cast(ir.Value, data)) is not None
        if is_kept(node):
            return False  # kernels compute with the integers
        known = (v is None or v in constants or self.is_constant(v) for v in node.inputs)
        if not static and not all(known):
            return False
        constants.update(dict.fromkeys(node.outputs, np.empty(0)))
        return True

    def _evaluate(self, node: ir.Node, constants: dict[ir.Value, Array]) -> Sequence[Array] | None:
        proto = ir.serde.serialize_node(node)
        feeds: dict[str, Array] = {}
        for value in node.inputs:
            if value is None:
                continue
            array = constants.get(value)
            if array is None:
                array = self.constant(value)
            if array is None:
                # Only Shape and Size are marked without contents: any array of the shape will do.
                array = np.broadcast_to(np.zeros((), np.int8), self.shape(value) or ())
            feeds[str(value.name)] = array
        return evaluate(proto, feeds, self.model.graph.opset_imports[""])

    def _keep_alive(self, node: ir.Node, constants: dict[ir.Value, Array], taken: set[str]) -> None:
        """The node stays in the graph, so what it reads must be there too."""
        for value in node.inputs:
            if value in constants and value.producer() is not None and constants[value].size:
                self._materialise(value, constants, taken)

    def _materialise(
        self, value: ir.Value, constants: dict[ir.Value, Array], taken: set[str]
    ) -> None:
        value.replace_all_uses_with(self.new_constant(f"{value.name}", constants[value], taken))

    def new_constant(self, wanted: str, array: Array, taken: set[str] | None = None) -> ir.Value:
        """A new initializer, under this name or one like it.

        `taken` is `value_names()` where that is known, and gets the name.
        """
        name = unique_name(wanted, self.value_names() if taken is None else taken)
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self.model.graph.register_initializer(value)
        return value

    def value_names(self) -> set[str]:
        """Names that nodes, inputs and initializers have taken."""
        graph = self.model.graph
        names = {str(value.name) for node in graph.all_nodes() for value in node.outputs}
        names.update(str(value.name) for value in graph.inputs)
        return names | set(graph.initializers)

    def _settle_names(self, nodes: Sequence[ir.Node]) -> None:
        """Call the constants of these layers NAME.weight and NAME.bias where that is now free."""
        taken = self.value_names()
        for node in nodes:
            if node.op_type in RECURRENT:
                continue
            for value, leaf in zip(node.inputs[1:], ("weight", "bias"), strict=False):
                if NAME not in node.meta or value is None or self.uses(value) > 1:
                    continue
                wanted, tensor = f"{node.meta[NAME]}.{leaf}", value.const_value
                if value.is_initializer() and tensor is not None and wanted not in taken:
                    # Not renamed in place: other graphs and the user's model share the tensor.
                    renamed = self.new_constant(wanted, tensor.numpy(), taken)
                    value.replace_all_uses_with(renamed)
                    del self.model.graph.initializers[str(value.name)]

    def _name_layers(self) -> None:
        computed: set[ir.Value] = set(self.model.graph.inputs)
        layers = []
        for node in self.model.graph:
            if any(value in computed for value in node.inputs):
                computed.update(node.outputs)
            # The first input decides: among weight computations there are products of constants.
            activation = node.op_type in NAMED and node.inputs[0] in computed
            if activation and node.inputs[1] not in computed:
                layers.append(node)
        taken = {str(node.meta[NAME]) for node in layers if NAME in node.meta}
        for node in layers:
            if NAME not in node.meta:
                node.meta[NAME] = unique_name(layer_name(node), taken)


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    """The dtype in which a tensor is evaluated; numpy has no bfloat16."""
    narrow = value.dtype is None or value.dtype is ir.DataType.BFLOAT16
    return np.dtype(np.float32) if narrow else cast(ir.DataType, value.dtype).numpy()
