"""What a `torch.fx.GraphModule` in functional aten form says, as the graph interface asks.

`nmcompile.frontends.torch_frontend.to_graph` makes such modules: parameters are `get_attr` nodes,
operators are `torch.ops.aten` overloads without in-place forms.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.flow import (
    channel_flow,
    channel_parameters,
    is_product,
    uniform_channels,
)
from nmcompile.passes.graphs.fx.nodes import (
    CONV,
    DROPOUT,
    LAYER_NORM,
    LINEAR,
    NAME,
    NATIVE_BATCH_NORM,
    arguments_of,
    as_numpy,
    batch_norm_node,
    bias_node,
    conv_attrs,
    data_node,
    is_identity,
    module_path,
    weight_node,
)
from nmcompile.passes.graphs.fx.quantised import integers
from nmcompile.passes.graphs.fx.weights import weighted_node
from nmcompile.passes.graphs.interface import (
    Affine,
    Array,
    Graph,
    Op,
    OpKind,
    Value,
    Weighted,
    unique_name,
)
from nmcompile.passes.graphs.quantised import QuantisedConstant

aten = torch.ops.aten


class FxReader(Graph):
    """The half of the adapter that asks; `FxGraph` edits."""

    kind = "torch"

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def ops(self) -> list[Op]:
        """All operators in topological order; see `Graph.ops`."""
        found = (self._op(node) for node in self.module.graph.nodes if node.op.startswith("call"))
        return [op for op in found if op is not None]

    def outputs(self) -> Sequence[Value]:
        """The nodes that the output node reads."""
        return list(self.module.graph.output_node().all_input_nodes)

    def constant(self, value: Value) -> Array | None:
        """The parameter or buffer behind a `get_attr` node, or what is dequantised from some.

        bfloat16 is widened to float32.
        """
        array = self.stored(cast(fx.Node, value))
        if array is None and (found := self.integers(value)) is not None:
            return found.real
        return array

    def integers(self, value: Value) -> QuantisedConstant | None:
        """What a dequantisation of constants reads."""
        return integers(cast(fx.Node, value), self.stored)

    def stored(self, node: fx.Node) -> Array | None:
        """The parameter or buffer behind a `get_attr` node."""
        tensor = self._tensor(node)
        return None if tensor is None else as_numpy(tensor)

    def named_constants(self) -> Iterator[tuple[str, Array]]:
        """The parameters and buffers that the graph reads."""
        for node in self.module.graph.nodes:
            if node.op == "get_attr" and (array := self.constant(node)) is not None:
                yield str(node.target), array

    def shape(self, value: Value) -> tuple[int, ...] | None:
        """The shape that export recorded."""
        recorded = cast(fx.Node, value).meta.get("val")
        if not isinstance(recorded, torch.Tensor):
            tensor = self._tensor(cast(fx.Node, value))
            if tensor is None:
                return None
            recorded = tensor
        dims = tuple(recorded.shape)
        return dims if all(type(dim) is int for dim in dims) else None

    def dtype(self, value: Value) -> str | None:
        """The dtype that export recorded."""
        node = cast(fx.Node, value)
        recorded = node.meta.get("val", self._tensor(node))
        if not isinstance(recorded, torch.Tensor):
            return None
        return str(recorded.dtype).removeprefix("torch.")

    def uses(self, value: Value) -> int:
        """Argument slots that hold the node."""
        node = cast(fx.Node, value)
        count = 0

        def visit(argument: fx.Node) -> fx.Node:
            nonlocal count
            count += argument is node
            return argument

        for user in node.users:
            fx.map_arg((user.args, user.kwargs), visit)
        return count

    def weighted(self) -> list[Weighted]:
        """See `nmcompile.passes.graphs.fx.weights`."""
        layers = {op.handle for op in self.ops() if op.kind in ("conv", "linear")}
        taken = {str(node.meta[NAME]) for node in self.module.graph.nodes if NAME in node.meta}
        found = []
        for node in self.module.graph.nodes:
            if node in layers:
                continue
            other = weighted_node(node, self.constant, self.shape)
            if other is not None and NAME not in node.meta:
                other = other.called(unique_name(other.name, taken))
            found += [other] if other is not None else []
        return found

    def stored_name(self, constant: Value) -> str:
        """The path of the parameter or buffer, of the integers where it is dequantised."""
        node = cast(fx.Node, constant)
        stored = node if node.op == "get_attr" else node.all_input_nodes[0]
        return str(stored.target)

    def readers(self, constant: Value) -> int:
        """Readers of every node whose tensor lies in the same memory.

        QuantisedConstant are not edited in place: of them, only what reads the node counts.
        """
        if cast(fx.Node, constant).op != "get_attr":
            return self.uses(constant)
        wanted = self._storage(cast(fx.Node, constant))
        nodes = self.module.graph.find_nodes(op="get_attr")
        return sum(self.uses(node) for node in nodes if self._storage(node) == wanted)

    def _op(self, node: fx.Node) -> Op | None:
        target, name = node.target, node.meta.get(NAME, node.name)
        if target is NATIVE_BATCH_NORM:
            # Its result is the getitem node, which stands for the whole operator below.
            return None
        kind: OpKind = "other"
        sources: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), sources.append)
        inputs: tuple[Any, ...] = tuple(sources)
        weight = bias = whole = conv = affine = None
        if target in CONV or target in LINEAR:
            weight, bias, known = self._weights(node)
            conv = conv_attrs(node, weight) if known and target in CONV else None
            if known and (target in LINEAR or conv is not None):
                kind = "conv" if target in CONV else "linear"
                inputs = (data_node(node),)
                whole = self._whole(node)
            else:
                weight = bias = None
        elif target is aten.batch_norm.default or target is operator.getitem:
            affine = self._affine(node)
            if affine is not None:
                kind = "batch_norm"
                name = module_path(node) or name
                inputs = (batch_norm_node(node).args[0],)
        elif target is aten.add.Tensor:
            if all(isinstance(a, fx.Node) for a in node.args[:2]) and not node.kwargs:
                kind, inputs = "add", tuple(node.args[:2])
        elif target in LAYER_NORM:
            affine = self._scale(node)
            kind = kind if affine is None else "layer_norm"
        elif is_identity(node) or (target in DROPOUT and not node.args[2]):
            kind = "identity"
        flow, parameters = channel_flow(node, kind, self.shape), channel_parameters(node, kind)
        uniform = uniform_channels(node) if flow.by_channel else "unknown"
        read = (weight, bias, whole, conv, affine, flow, parameters, uniform, is_product(node))
        return Op(kind, name, f"{target} {node.name}", inputs, node, node, *read)

    def _weights(self, node: fx.Node) -> tuple[Array | None, Array | None, bool]:
        """Weight, bias, and whether both are constants of a kind the passes can handle."""
        arguments, added = arguments_of(node), bias_node(node)
        weight = self.constant(weight_node(node))
        bias = None if added is None else self.constant(added)
        known = weight is not None and (added is None or bias is not None)
        if known and weight is not None and node.target in LINEAR:
            known = weight.ndim == 2 and (bias is None or bias.ndim == 1)
            known = known and arguments.get("alpha", 1) == arguments.get("beta", 1) == 1
            if known and node.target is not aten.linear.default:
                weight = weight.T
        return weight, bias, known

    def _whole(self, node: fx.Node) -> QuantisedConstant | None:
        """What the weight is stored as, outputs first."""
        found = self.integers(weight_node(node))
        turned = node.target in LINEAR and node.target is not aten.linear.default
        return found.transposed((1, 0)) if found is not None and turned else found

    def _affine(self, node: fx.Node) -> Affine | None:
        source = batch_norm_node(node)
        if source is None or (node is not source and node.args[1] != 0):
            return None
        arguments = arguments_of(source)
        if arguments.get("training", False):
            return None
        optional = [arguments["weight"], arguments["bias"]]
        found = [arguments["running_mean"], arguments["running_var"], *optional]
        if any(a is None for a in found[:2]):
            return None
        read = [None if a is None else self.constant(a) for a in found]
        if any(a is not None and r is None for a, r in zip(found, read, strict=True)):
            return None
        mean, var = np.asarray(read[0], np.float64), np.asarray(read[1], np.float64)
        # A negative variance gives NaN, which `check_weights` reports with the layer's name.
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 1.0 / np.sqrt(var + arguments["eps"])
        if read[2] is not None:
            scale = scale * read[2]
        shift = -mean * scale if read[3] is None else read[3] - mean * scale
        return Affine(scale, shift)

    def _scale(self, node: fx.Node) -> Affine | None:
        """What a layer norm scales and shifts by, None where it does not, or along several axes."""
        given = arguments_of(node)
        found = [given["weight"], given.get("bias")]
        read = [None if a is None else self.constant(a) for a in found]
        same = all((a is None) == (r is None) for a, r in zip(found, read, strict=True))
        if len(given["normalized_shape"]) != 1 or not same or found == [None, None]:
            return None
        (size,) = given["normalized_shape"]
        scale, shift = (
            np.full(size, neutral) if r is None else np.asarray(r, np.float64)
            for r, neutral in zip(read, (1.0, 0.0), strict=True)
        )
        return Affine(scale, shift)

    def _tensor(self, node: fx.Node) -> torch.Tensor | None:
        if node.op != "get_attr":
            return None
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found if isinstance(found, torch.Tensor) else None

    def _storage(self, node: fx.Node) -> object:
        tensor = self._tensor(node)
        return node.target if tensor is None else tensor.untyped_storage().data_ptr()
