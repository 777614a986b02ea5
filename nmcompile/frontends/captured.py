"""Graphs that torch.compile has captured: as aten graphs, and as files of what is left of them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nmcompile.errors import ModelError
from nmcompile.frontends.torch_frontend import export_graph

_STORES = ("_modules", "_parameters", "_buffers")
_STEP = re.compile(r"\['?([^']+?)'?\]|\.(\w+)")

Call = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Argument:
    """What a captured graph is called with, at one position.

    constant: whether it is a parameter or buffer of a module.
    name: of such, its path in the model.
    symbol: whether it is a number, mostly an extent of a shape.
    """

    constant: bool
    name: str
    symbol: bool


def arguments(module: fx.GraphModule, examples: Sequence[Any]) -> tuple[Argument, ...]:
    """The arguments of a graph, as dynamo hands it to a backend."""
    found = []
    nodes = module.graph.find_nodes(op="placeholder")
    for node, example in zip(nodes, examples, strict=True):
        source = str(getattr(getattr(node, "_dynamo_source", None), "name", ""))
        stored = isinstance(example, torch.nn.Parameter) or "._buffers[" in source
        constant = isinstance(example, torch.Tensor) and stored
        found.append(Argument(constant, _path(source) or node.name, _is_symbol(example)))
    return tuple(found)


def needs_gradients(module: fx.GraphModule) -> bool:
    """Whether a tensor that a graph returns had a gradient when dynamo followed it."""
    values = [node.meta.get("example_value") for node in module.graph.output_node().all_input_nodes]
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def bind(
    module: fx.GraphModule, held: Mapping[int, tuple[str, torch.Tensor]], numbers: Mapping[int, Any]
) -> fx.GraphModule:
    """The same graph with some of its arguments as parameters, and numbers where they are used.

    Args:
        module: as dynamo hands it to a backend.
        held: by position, tensors with their names.
        numbers: by position, what stands for symbols.
    """
    root = torch.nn.Module()
    for name, child in module.named_children():
        root.add_module(name, child)
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        _store(root, name, tensor)
    graph, values = fx.Graph(), dict[fx.Node, Any]()
    position = 0
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if position in held:
                name, tensor = held[position]
                values[node] = graph.get_attr(_store(root, name, tensor))
            elif position in numbers:
                values[node] = numbers[position]
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
            position += 1
        elif node.target is not torch._C._set_grad_enabled:  # nothing has gradients here
            values[node] = graph.node_copy(node, values.__getitem__)
    return fx.GraphModule(root, graph)


def to_aten(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """A bound graph as `nmcompile.frontends` has graphs; what it writes to stands at its end.

    Raises:
        ModelError: torch cannot export it.
    """
    return export_graph(module, tuple(inputs), {})


def is_trained(module: fx.GraphModule) -> str | None:
    """The first operator of an aten graph that is in training mode."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name not in ("train", "training"):
                continue
            given = node.args[position] if position < len(node.args) else None
            if node.kwargs.get(argument.name, given) is True:
                return f"{node.target} (node {node.name})"
    return None


def export_flat(module: fx.GraphModule, inputs: Sequence[Any]) -> torch.export.ExportedProgram:
    """A graph as a program of torch's.

    Raises:
        ModelError: torch cannot export it.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(inputs), strict=False)
    except Exception as error:  # it has a class for every kind of failure
        raise ModelError(
            f"what torch runs of the graph cannot be exported: torch.export says "
            f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    program.example_inputs = None
    return program


def save_program(program: torch.export.ExportedProgram) -> bytes:
    """What `load_program` reads.

    Raises:
        ModelError: torch cannot write it.
    """
    stream = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, stream)
    except Exception as error:
        raise ModelError(f"what torch runs of the graph cannot be saved: {error}") from error
    return stream.getvalue()


def load_program(content: bytes) -> torch.export.ExportedProgram:
    """A program that `save_program` has written.

    Raises:
        ModelError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise ModelError(f"a saved program cannot be loaded: {error}") from error


def flat(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A program of flat arguments and results, as a module that is called with them."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    return module


def _is_symbol(example: Any) -> bool:
    return isinstance(example, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)


def _path(source: str) -> str:
    """The path of a parameter: conv.weight is L['self']._modules['conv']._parameters['weight']."""
    steps = [index or name for index, name in _STEP.findall(source)]
    return ".".join(step for step in steps[1:] if step not in _STORES)


def _store(root: torch.nn.Module, wanted: str, tensor: torch.Tensor | None) -> str:
    """Register a tensor under a free path; returns it."""
    *path, leaf = re.sub(r"[^\w.]", "_", wanted).split(".")
    owner, taken = root, list[str]()
    for step in path:
        child = getattr(owner, step, None)
        if not isinstance(child, torch.nn.Module):
            step, child = _free(owner, step), torch.nn.Module()
            owner.add_module(step, child)
        owner = child
        taken.append(step)
    leaf = _free(owner, leaf)
    if isinstance(tensor, torch.nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)
    return ".".join((*taken, leaf))


def _free(owner: torch.nn.Module, wanted: str) -> str:
    name, count = wanted or "tensor", 0
    while hasattr(owner, name):
        count += 1
        name = f"{wanted}_{count}"
    return name
