"""Operators as those that torch itself makes of them, where all of these are believed in."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import VIEW
from nmcompile.passes.operators.torch.editing import Replacement

LONGEST = 64
"""Operators that one may become: recurrent layers become some for each of their steps."""


def rewrite_by_formula(
    graph: FxGraph, node: fx.Node, settle: Callable[[FxGraph], None]
) -> str | None:
    """What `torch.export.default_decompositions` has for the operator, in its place.

    Args:
        graph: the node's.
        node: an operator that is not believed in.
        settle: brings a graph to operators that are, or raises an exception.

    Returns:
        None, or "": torch has no formula, or one with operators that cannot be settled.
    """
    sources, formula = node.all_input_nodes, _formula(node.target)
    if formula is None or any(graph.shape(source) is None for source in sources):
        return ""
    try:
        module = _traced(formula, node, sources)
        if any(each.target is node.target for each in module.graph.nodes):
            return ""
        part = FxGraph(module)
        settle(part)
    except Exception:  # torch's formulas do not say what they raise
        return ""
    inner, users = module.graph, list(node.users)
    returned: Any = inner.output_node().args[0]
    several = isinstance(returned, (tuple, list)) and not isinstance(node.meta["val"], torch.Tensor)
    if several and any(user.target is not operator.getitem for user in users):
        return ""
    if sum(each.op == "call_function" for each in inner.nodes) > LONGEST:
        return ""
    new = Replacement(graph, node)
    env = dict(zip(inner.find_nodes(op="placeholder"), sources, strict=True))
    for each in inner.nodes:
        if each.op == "get_attr":
            constant = part.constant(each)
            assert constant is not None
            env[each] = new.constant(constant)
        elif each.op == "call_function":
            args, kwargs = fx.map_arg((each.args, each.kwargs), env.__getitem__)
            env[each] = new.add(each.target, *args, **kwargs)
    if several:
        for user in users:
            user.replace_all_uses_with(env[returned[user.args[1]]])
        graph.sweep()
    else:
        new.finish(env[returned[0] if isinstance(returned, (tuple, list)) else returned])
    return None


def _formula(target: Any) -> Callable[..., Any] | None:
    found = _formulas().get(target)
    if found is None and isinstance(target, torch._ops.OpOverload) and target._can_decompose():
        return target.decompose
    return found


@cache
def _formulas() -> Mapping[Any, Callable[..., Any]]:
    table: Any = torch.export.default_decompositions()
    return dict(table.items())  # of which `get` and `in` disagree


def _traced(formula: Callable[..., Any], node: fx.Node, sources: list[fx.Node]) -> fx.GraphModule:
    """The formula as a functional aten graph, from `sources` to the operator's results.

    Composite operators in it stay as they are: those are what the table speaks of.
    """

    def call(*tensors: torch.Tensor) -> Any:
        given = dict(zip(sources, tensors, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        # Else the trace would have the operator itself.
        with torch._C.DisableTorchFunction():
            return formula(*args, **kwargs)

    values = [source.meta["val"] for source in sources]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [torch.empty(tuple(value.shape), dtype=value.dtype) for value in values]
            module = make_fx(call, pre_dispatch=True)(*fakes)
        if any(_mutates(each.target) for each in module.graph.nodes):
            zeros = tuple(torch.zeros(tuple(v.shape), dtype=v.dtype) for v in values)
            program = torch.export.export(module, zeros, strict=False).run_decompositions({})
            module = cast(fx.GraphModule, program.module(check_guards=False))
    for each in module.graph.nodes:
        if each.target in VIEW:
            each.target = torch.ops.aten.reshape.default
    module.graph.eliminate_dead_code()
    return module


def _mutates(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
