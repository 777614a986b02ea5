"""One form of a captured graph: compiled for some shapes and some parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from nmcompile.cache import Cache
from nmcompile.dynamo.constants import Constants
from nmcompile.dynamo.divide import is_view
from nmcompile.dynamo.effects import written
from nmcompile.dynamo.options import Options
from nmcompile.dynamo.plans import Plan, Plans, content_key
from nmcompile.dynamo.reasons import BACKEND, NothingOursError
from nmcompile.errors import InputError, ModelError, UnsupportedOperatorError
from nmcompile.frontends.captured import Argument, bind, export_flat, flat, is_trained, to_aten
from nmcompile.runtime import cpu
from nmcompile.runtime.files import scratch_folder

Values = Sequence[Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """What dynamo has captured, and what its arguments are."""

    module: fx.GraphModule
    arguments: tuple[Argument, ...]

    @cached_property
    def symbols(self) -> tuple[int, ...]:
        """Positions of what stands for symbols."""
        return tuple(at for at, argument in enumerate(self.arguments) if argument.symbol)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Positions of what is neither a symbol nor a parameter."""
        known = enumerate(self.arguments)
        return tuple(at for at, argument in known if not (argument.symbol or argument.constant))

    def tensors(self, values: Values) -> dict[int, tuple[str, torch.Tensor]]:
        """By position, the parameters and buffers of one call, with their names."""
        known = enumerate(self.arguments)
        return {at: (argument.name, values[at]) for at, argument in known if argument.constant}

    def shapes(self, values: Values) -> tuple[Any, ...]:
        """What one call has that another may have otherwise; nothing in a graph without symbols."""
        if not self.symbols:
            return ()
        shapes = (getattr(values[at], "shape", None) for at in self.inputs)
        return (*(values[at] for at in self.symbols), *shapes)


@dataclass(frozen=True, eq=False)
class Form:
    """A graph as it runs for some shapes and parameters.

    shapes: see `Graph.shapes`.
    constants: the parameters.
    inputs: positions of what the plan is called with.
    plan: None where torch runs the graph.
    """

    shapes: tuple[Any, ...]
    constants: Constants
    inputs: tuple[int, ...]
    plan: Plan | None

    def call(self, graph: Graph, values: Values) -> Values:
        """Run it."""
        if self.plan is None:
            found: Values = graph.module(*values)
            return found
        with torch.no_grad():
            return self.plan.call(*[values[position] for position in self.inputs])


def make_form(graph: Graph, options: Options, values: Values) -> Form:
    """Compile a graph for the shapes and parameters of one call, or find that it was before.

    Raises:
        InputError: the graph is in training mode.
        PatternError: a layer breaks the pattern that is claimed.
        NmcompileError: nothing of it can be compiled, or it could not run here.
    """
    cpu.require(options.chosen.cpu_features, f"code for the target {options.chosen.name}")
    _check(values)
    held = graph.tensors(values)
    own = [*graph.module.parameters(), *graph.module.buffers()]
    if any(tensor.is_inference() for tensor in (*(t for _, t in held.values()), *own)):
        raise UnsupportedOperatorError(
            "the model has parameters that were made within torch.inference_mode(), where torch "
            "does not count changes; expected a model that was made and loaded outside"
        )
    constants = Constants({at: tensor for at, (_, tensor) in held.items()}, own)
    with torch.inference_mode(False), torch.no_grad():
        plan = _plan(graph, options, values, held)
    if plan.released:
        kept = {at: t for at, (_, t) in held.items() if at not in plan.released}
        constants = Constants(kept, own)
    inputs = tuple(sorted((*graph.inputs, *plan.released)))
    return Form(graph.shapes(values), constants, inputs, plan)


def torch_form(graph: Graph, values: Values) -> Form:
    """A graph as torch runs it, with whatever parameters."""
    return Form(graph.shapes(values), Constants({}, ()), (), None)


def _plan(
    graph: Graph, options: Options, values: Values, held: dict[int, tuple[str, torch.Tensor]]
) -> Plan:
    numbers = {position: values[position] for position in graph.symbols}
    bound = bind(graph.module, held, numbers)
    examples = _examples(values, graph.inputs)
    key = content_key(bound, examples, options)
    plans = Plans(Cache(options.cache), key, options.threads or torch.get_num_threads())
    found = plans.find()
    if found is not None:
        return found
    aten = to_aten(bound, examples)
    trained = is_trained(aten)
    if trained is not None:
        raise InputError(
            f"{BACKEND} compiles for inference: expected a model in evaluation mode, found "
            f"{trained} in training mode; call model.eval() first"
        )
    released = _shared(aten, held)
    if released:
        kept = {at: named for at, named in held.items() if at not in released}
        examples = _examples(values, sorted((*graph.inputs, *released)))
        aten = to_aten(bind(graph.module, kept, numbers), examples)
    # The compiler is not needed where everything was compiled before.
    from nmcompile.dynamo.lower import lower

    with scratch_folder() as folder:
        try:
            lowered = lower(aten, options, folder, plans.open_part)
        except NothingOursError as error:
            plans.keep_nothing(error)
            raise
    try:
        program = export_flat(lowered.module, examples)
    except ModelError:  # the graph runs all the same
        return Plan(lowered.module.forward, lowered.sessions, released)
    plans.keep(program, released)
    return Plan(flat(program).forward, lowered.sessions, released)


def _examples(values: Values, inputs: Sequence[int]) -> list[torch.Tensor]:
    """Tensors as those of a call, without their contents."""
    given = [values[position] for position in inputs]
    return [
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).zero_()
        for x in given
    ]


def _shared(aten: fx.GraphModule, held: dict[int, tuple[str, torch.Tensor]]) -> tuple[int, ...]:
    """Positions of the parameters and buffers that a graph writes to, or returns views of."""
    found = written(aten)
    waiting = list(aten.graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "get_attr":
            found.append(node)
        elif node.op == "call_function" and is_view(node):
            waiting += node.all_input_nodes
    names = {str(node.target) for node in found if node.op == "get_attr"}
    stored = [
        *aten.named_parameters(remove_duplicate=False),
        *aten.named_buffers(remove_duplicate=False),
    ]
    shared = [tensor for name, tensor in stored if name in names]
    positions = tuple(at for at, (_, t) in held.items() if any(t is one for one in shared))
    if len(positions) < len({id(tensor) for tensor in shared}):
        raise UnsupportedOperatorError(
            "the graph writes to a tensor of its own; expected parameters and buffers of modules"
        )
    return positions


def _check(values: Values) -> None:
    """Refuse what a compiled graph would compute otherwise.

    Raises:
        UnsupportedOperatorError: there is some of it.
    """
    if torch.is_autocast_enabled("cpu"):
        raise UnsupportedOperatorError(
            "torch.autocast is on for the CPU; expected none: say precision instead"
        )
    for value in values:
        if isinstance(value, int | float):  # what symbols stand for
            continue
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise UnsupportedOperatorError(
                f"an argument is a {type(value).__name__}; expected plain tensors"
            )
        if value.device.type != "cpu" or value.layout != torch.strided:
            raise UnsupportedOperatorError(
                f"a tensor is on the device {value.device} in the layout {value.layout}; expected "
                "strided tensors of the CPU"
            )
