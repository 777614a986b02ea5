"""The graph interface over a `torch.fx.GraphModule` in functional aten form.

`nmcompile.frontends.torch_frontend.to_graph` makes such modules: parameters are `get_attr` nodes,
operators are `torch.ops.aten` overloads without in-place forms.
"""

import copy
import operator
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import (
    CONV,
    LINEAR,
    NAME,
    SIZED,
    arguments_of,
    as_numpy,
    bias_node,
    data_node,
    is_pure,
    layer_name,
    weight_node,
)
from nmcompile.passes.graphs.fx.products import settle_products
from nmcompile.passes.graphs.fx.quantised import dequantise, is_dequantisation, viewed
from nmcompile.passes.graphs.fx.reading import FxReader
from nmcompile.passes.graphs.interface import Array, Op, Value, Weighted, unique_name
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.passes.graphs.transposed import inputs_first

aten = torch.ops.aten


class FxGraph(FxReader):
    """Edits the module it is given; weights that change become new parameters of it."""

    def __init__(self, module: fx.GraphModule) -> None:
        """Take over `module`, a functional aten graph, and name its layers."""
        super().__init__(module)
        self._name_layers()

    def native(self) -> fx.GraphModule:
        """The module, recompiled after the edits."""
        self.module.graph.lint()
        self.module.recompile()
        return self.module

    def copy(self) -> "FxGraph":
        """A deep copy, weights included."""
        return FxGraph(_deep_copy(self.module))

    def replace(self, old: Value, new: Value) -> None:
        """Rewire the readers of `old`."""
        cast(fx.Node, old).replace_all_uses_with(cast(fx.Node, new))

    def drop_operand(self, op: Op, index: int) -> None:
        """`aten.add` has two operands: its readers now read the one that stays."""
        self.replace(op.output, op.inputs[1 - index])

    def set_weight(self, op: Op, weight: Array, bias: Array | None) -> None:
        """Store new parameters under the layer's module path; matrix products become linear."""
        node: fx.Node = op.handle
        arguments, data = arguments_of(node), data_node(node)
        old = self._tensor(weight_node(node))
        dtype = torch.float32 if old is None else old.dtype
        held = None if op.integers is None else op.integers.holding(weight)
        name = f"{op.name}.weight"
        with self.module.graph.inserting_before(node):
            arguments["weight"] = (
                self._dequantised(name, held)
                if held is not None
                else self.new_constant(name, weight, dtype)
            )
            arguments["bias"] = (
                None if bias is None else self.new_constant(f"{op.name}.bias", bias, dtype)
            )
        if op.kind == "linear":
            node.target = aten.linear.default
            node.args = (data, arguments["weight"], arguments["bias"])
            node.kwargs = {}
        else:
            node.args = tuple(arguments.values())
            node.kwargs = {}
        self.sweep()
        self._settle_names({op.name: node})

    def drop_affine(self, op: Op) -> None:
        """Torch's norms take None."""
        node: fx.Node = op.handle
        arguments = arguments_of(node)
        arguments.update({name: None for name in ("weight", "bias") if name in arguments})
        node.args, node.kwargs = tuple(arguments.values()), {}
        self.sweep()

    def set_other_weight(self, other: Weighted, weight: Array) -> None:
        """Store a new parameter under the operator's name."""
        node: fx.Node = other.handle
        turned = "transpose" in other.op
        array = inputs_first(weight, other.groups) if turned else weight
        arguments = arguments_of(node)
        with self.module.graph.inserting_before(node):
            made = self.new_constant(f"{other.name}.weight", array, torch.float32)
        node.args, node.kwargs = tuple((arguments | {"weight": made}).values()), {}
        self.sweep()
        self._settle_names({other.name: node})

    def reorder(self, constant: Value, axis: int, order: Array) -> None:
        """Store a reordered copy under the same path."""
        node = cast(fx.Node, constant)
        source = self.integers(node)
        if source is not None:
            with self.module.graph.inserting_before(node):
                moved = self._dequantised(node.name, source.reordered(axis, order))
            # The node stays the constant that is reordered, along another axis next.
            node.target, node.args, node.meta["val"] = moved.target, moved.args, moved.meta["val"]
            self.module.graph.erase_node(moved)
            self.sweep()
            return
        tensor = self._tensor(node)
        assert tensor is not None
        index = torch.from_numpy(np.asarray(order, np.int64)).to(tensor.device)
        self._delete(str(node.target))
        moved_tensor = tensor.detach().index_select(axis, index)
        self._store(str(node.target), moved_tensor)
        node.meta["val"] = moved_tensor.to(device="meta")

    def resize(self, op: Op, shape: tuple[int, ...]) -> None:
        """Record the shape; views, and the groups of depthwise convolutions, are given it."""
        node: fx.Node = op.handle
        if node.target in SIZED:
            node.args = (node.args[0], list(shape))
        if op.groups > 1:
            node.args = tuple((arguments_of(node) | {"groups": shape[1]}).values())
            node.kwargs = {}
        node.meta["val"] = node.meta["val"].new_empty(shape)

    def evaluate(self, op: Op, inputs: Mapping[Value, Array]) -> Array | None:
        """Run the node by itself."""
        node: fx.Node = op.handle

        def filled(source: fx.Node) -> torch.Tensor:
            if source not in inputs:
                return cast(torch.Tensor, self._tensor(source))
            dtype = cast(torch.Tensor, source.meta["val"]).dtype
            return torch.from_numpy(np.ascontiguousarray(inputs[source])).to(dtype)

        sources = node.all_input_nodes
        if not is_pure(node) or any(s not in inputs and self._tensor(s) is None for s in sources):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), filled)
        with torch.no_grad():
            return as_numpy(cast(Any, node.target)(*args, **kwargs))

    def fold_constants(self) -> list[str]:
        """Run every node whose inputs are constants; in-place and random operators stay."""
        gone: list[str] = []
        while found := [*self._move_dequantisation(), *self._fold_constants_once()]:
            gone += found
        return gone

    def _move_dequantisation(self) -> list[str]:
        """Apply views of dequantised constants to the integers; returns their names."""
        moved = []
        for node in list(self.module.graph.nodes):
            data = node.args[0] if node.args else None
            source = self.integers(data) if isinstance(data, fx.Node) else None
            if source is None or node.target is operator.getitem:
                continue
            seen = viewed(node, source, self.shape(node))
            if seen is not None:
                with self.module.graph.inserting_before(node):
                    made = self._dequantised(node.name, seen)
                self.replace(node, made)
                moved.append(node.name)
        if moved:
            self.sweep()
        return moved

    def _dequantised(self, name: str, found: QuantisedConstant) -> fx.Node:
        """New integers and their dequantisation, at the place where nodes are inserted."""

        def constant(leaf: str, array: Array) -> fx.Node:
            tensor = torch.from_numpy(np.array(array, order="C"))
            return self.new_constant(f"{name}_{leaf}", tensor, tensor.dtype)

        return dequantise(self.module.graph, found, constant)

    def _fold_constants_once(self) -> list[str]:
        values: dict[fx.Node, Any] = {}
        kept: set[fx.Node] = set()
        gone: list[str] = []
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                tensor = self._tensor(node)
                if tensor is not None:
                    values[node] = tensor.detach()
            elif is_dequantisation(node) and (known := self.integers(node)) is not None:
                values[node] = torch.from_numpy(known.real.copy())
                kept.add(node)  # kernels compute with the integers
            elif is_dequantisation(node) and node.all_input_nodes[0].op != "get_attr":
                continue  # its integers may be constants the next time
            elif is_pure(node) and all(source in values for source in node.all_input_nodes):
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                with torch.no_grad():
                    values[node] = node.target(*args, **kwargs)
                gone.append(node.name)
        readers: dict[str, fx.Node] = {}
        for node, value in values.items():
            if node.op == "get_attr" or node in kept or not isinstance(value, torch.Tensor):
                continue
            if all(user in values for user in node.users):
                continue
            with self.module.graph.inserting_before(node):
                constant = self.new_constant(node.name, value.contiguous(), value.dtype)
            node.replace_all_uses_with(constant)
            readers.update((u.meta[NAME], u) for u in constant.users if NAME in u.meta)
        self.sweep()
        self._settle_names(readers)
        left = {node.name for node in self.module.graph.nodes}  # numbers that shapes are made of
        return [name for name in gone if name not in left]

    def settle_products(self) -> list[str]:
        """See `products`."""
        return settle_products(self)

    def sweep(self) -> int:
        """Erase nodes without readers, guards and assertions among them, and unused constants."""
        erased = 0
        graph = self.module.graph
        for node in reversed(list(graph.nodes)):
            if node.op not in ("placeholder", "output") and not node.users:
                erased += node.op != "get_attr"
                graph.erase_node(node)
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        stored = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        for target, _ in stored:
            if target not in used:
                self._delete(target)
        return erased

    def check(self) -> None:
        """The graph lints, and its recorded shapes are what its operators compute."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        try:
            self.module.graph.lint()
        except RuntimeError as error:
            raise AssertionError(f"fx graph does not lint: {error}") from error
        copied = _deep_copy(self.module)
        inputs = [n.meta["val"] for n in copied.graph.nodes if n.op == "placeholder"]
        before = {node.name: self.shape(node) for node in copied.graph.nodes}
        mode = inputs[0].fake_mode if inputs else FakeTensorMode(allow_non_fake_inputs=True)
        FakeTensorProp(copied, mode).propagate_dont_convert_inputs(*inputs)
        for node in copied.graph.nodes:
            now = FxGraph.shape(self, node)
            known = before[node.name]
            assert known is None or known == now, f"{node.name}: recorded {known}, computed {now}"

    def new_constant(self, wanted: str, value: Any, dtype: torch.dtype) -> fx.Node:
        """A `get_attr` node on a new parameter (buffer, if integer) under a free name."""
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        tensor = tensor.detach().to(dtype)
        used = {str(n.target) for n in self.module.graph.nodes if n.op == "get_attr"}
        used.update(name for name, _ in self.module.named_modules())
        target = unique_name(wanted, used)
        self._delete(target)
        self._store(target, tensor)
        node = self.module.graph.get_attr(target)
        node.meta["val"] = tensor.to(device="meta")
        return node

    def _settle_names(self, layers: dict[str, fx.Node]) -> None:
        """Call the constants of these layers NAME.weight and NAME.bias where that is now free."""
        for name, node in layers.items():
            for constant, leaf in ((weight_node(node), "weight"), (bias_node(node), "bias")):
                if constant is None or constant.op != "get_attr" or len(constant.users) > 1:
                    continue
                used = {n.target for n in self.module.graph.nodes if n.op == "get_attr"}
                wanted, tensor = f"{name}.{leaf}", self._tensor(constant)
                if wanted not in used and tensor is not None:
                    self._delete(str(constant.target))
                    self._store(wanted, tensor)
                    constant.target = wanted

    def _store(self, target: str, tensor: torch.Tensor) -> None:
        path, _, leaf = target.rpartition(".")
        owner: torch.nn.Module = self.module
        for part in filter(None, path.split(".")):
            if not isinstance(getattr(owner, part, None), torch.nn.Module):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        if tensor.is_floating_point():
            owner.register_parameter(leaf, torch.nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)

    def _delete(self, target: str) -> None:
        path, _, leaf = target.rpartition(".")
        try:
            owner = self.module.get_submodule(path)
        except AttributeError:
            return
        if isinstance(getattr(owner, leaf, None), torch.Tensor):
            delattr(owner, leaf)

    def _name_layers(self) -> None:
        computed: set[fx.Node] = set()  # whatever depends on an input: no weight
        layers = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
                computed.add(node)
            if node.target in CONV or node.target in LINEAR:
                if weight_node(node) not in computed and data_node(node) in computed:
                    layers.append(node)
        taken = {node.meta[NAME] for node in layers if NAME in node.meta}
        for node in layers:
            if NAME not in node.meta:
                node.meta[NAME] = unique_name(layer_name(node), taken)


def _deep_copy(module: fx.GraphModule) -> fx.GraphModule:
    with warnings.catch_warnings():
        # Copying torch's own tree specs trips over a deprecation inside torch.
        warnings.simplefilter("ignore", FutureWarning)
        return copy.deepcopy(module)
