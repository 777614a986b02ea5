"""From a captured graph to one in which the parts that pay are compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx

from nmcompile.compiler import compile, refuse_trivial
from nmcompile.dynamo.divide import PREFIX, divide, give_constants, pieces, views_returned
from nmcompile.dynamo.effects import take_effects
from nmcompile.dynamo.operator import RUN
from nmcompile.dynamo.options import Options
from nmcompile.dynamo.reasons import NothingOursError, log
from nmcompile.errors import ModelError, UnsupportedOperatorError
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import CONV, LINEAR
from nmcompile.passes.graphs.fx.planar import CONVOLUTIONS, TRANSPOSED
from nmcompile.passes.operators.torch.quantised import LIBRARY
from nmcompile.passes.operators.torch.refusals import refusals
from nmcompile.passes.pipeline import run_pipeline
from nmcompile.runtime import Session
from nmcompile.sparsity import VERIFY
from nmcompile.targets import BF16

PRODUCTS = CONV | LINEAR | CONVOLUTIONS | TRANSPOSED | {torch.ops.aten.bmm.default}
SHOWN = 3
"""Reasons in a message."""

OpenPart = Callable[[int, Path], tuple[str, Session]]
"""Takes a part's number and its artifact; returns a name for it, and its session."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph in which the parts that were compiled are operators.

    module: takes its inputs by position and returns a tuple.
    sessions: of the parts, by the names that the operators have for them.
    """

    module: fx.GraphModule
    sessions: Mapping[str, Session]


def lower(module: fx.GraphModule, options: Options, folder: Path, open_part: OpenPart) -> Lowered:
    """Compile what pays of an aten graph.

    Args:
        module: the graph, which is changed.
        options: what the user has asked for.
        folder: for artifacts, which are done with when this returns.
        open_part: brings an artifact to where it stays.

    Raises:
        NothingOursError: nothing pays.
        PatternError: a layer breaks the pattern that is claimed.
        NmcompileError: the graph cannot be folded, or this machine cannot compile.
    """
    effects = take_effects(module)
    graph = FxGraph(module)
    run_pipeline(graph)
    _check_claims(graph, options)
    give_constants(module)
    refused = {**refusals(graph), **views_returned(module)}
    made: dict[tuple[fx.Node, ...], Path] = {}
    while True:
        parts = [tuple(part) for part in pieces(graph, refused)]
        if not parts:
            raise _nothing(graph, refused)
        outer = divide(module, parts)
        refusal = None
        for index, part in enumerate(parts):
            if part not in made:
                output = folder / f"{len(made)}.nmc"
                refusal = _compile(outer.get_submodule(f"{PREFIX}{index}"), options, output)
                if refusal is not None:
                    refused |= dict.fromkeys(part, refusal)
                    break
                made[part] = output
        if refusal is None:
            break
    _log(parts, refused)
    sessions: dict[str, Session] = {}
    for index, part in enumerate(parts):
        name, session = open_part(index, made[part])
        sessions[name] = session
        _call(outer, f"{PREFIX}{index}", name)
    effects.put_back(outer)
    outer.graph.lint()
    # Without the weights that the parts have now: a later process would read them for nothing.
    return Lowered(fx.GraphModule(outer, outer.graph), sessions)


def _check_claims(graph: FxGraph, options: Options) -> None:
    """Hold a graph against the pattern and the precision that are claimed.

    Raises:
        PatternError: a layer breaks the pattern.
        UnsupportedOperatorError: nothing is quantised of what is to run on integers.
    """
    layers = len(graph.computed())
    nodes = graph.module.graph.nodes
    if options.precision == "int8" and layers:
        if not any(str(node.target).startswith(f"{LIBRARY}.") for node in nodes):
            raise UnsupportedOperatorError(
                f"precision int8: expected a quantised graph, as of PT2E, found {layers} layers "
                "and nothing that quantises; quantise the model first"
            )
    if options.pattern in ("auto", "dense"):
        return
    # Graphs between breaks may have no layer that a pattern concerns.
    known = EnforcePattern("auto", VERIFY).call(graph).layers
    if any(row.skipped is None for row in known):
        refuse_trivial(EnforcePattern(options.pattern, VERIFY).call(graph))


def _compile(part: torch.nn.Module, options: Options, output: Path) -> str | None:
    """Compile a part to a file; returns why it was refused, or None."""
    try:
        compile(
            part,
            output=output,
            target=options.chosen.name,
            pattern="dense" if options.pattern == "dense" else "auto",
            precision=BF16 if options.precision == BF16 else None,
            rest="none",
        )
    except ModelError as error:
        return str(error).removeprefix("the model cannot be compiled: ").partition("; ")[0]
    return None


def _call(outer: fx.GraphModule, part: str, name: str) -> None:
    """Put the operator in the place of a part, and results into the strides that they had."""
    (node,) = outer.graph.find_nodes(op="call_module", target=part)
    with outer.graph.inserting_before(node):
        made = outer.graph.call_function(RUN, (list(node.args), name))
    node.replace_all_uses_with(made)
    outer.graph.erase_node(node)
    outer.delete_submodule(part)
    for result in list(made.users):
        value = result.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.is_contiguous():
            continue
        with outer.graph.inserting_after(result):
            empty = outer.graph.call_function(
                torch.ops.aten.empty_strided.default,
                (list(value.shape), list(value.stride())),
                {"dtype": value.dtype},
            )
        with outer.graph.inserting_after(empty):
            placed = outer.graph.call_function(torch.ops.aten.copy_.default, (empty, result))
        result.replace_all_uses_with(placed)
        placed.args = (empty, result)


def _nothing(graph: FxGraph, refused: Mapping[fx.Node, str]) -> NothingOursError:
    layers = len(graph.computed())
    count = sum(op.kind != "identity" for op in graph.ops())
    if not layers:
        products = sum(node.target in PRODUCTS for node in graph.module.graph.nodes)
        return NothingOursError(
            f"none of the {count} operators of a graph is a convolution or matrix product with "
            "constant weights",
            products,
        )
    reasons = list(dict.fromkeys(refused.values()))
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    why = "; ".join(reasons[:SHOWN]) + more if reasons else "its layers are too small"
    return NothingOursError(
        f"nothing would be gained of a graph of {count} operators with {layers} layers: {why}",
        layers,
    )


def _log(parts: Sequence[Sequence[fx.Node]], refused: Mapping[fx.Node, str]) -> None:
    nodes = sum(node.op.startswith("call") for part in parts for node in part)
    log.info("compiled %d operators in %d parts", nodes, len(parts))
    for node, why in refused.items():
        log.info("left to torch: %s: %s", node.name, why)
