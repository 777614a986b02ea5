"""Take out channels that hold zeros, or that nothing reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nmcompile.passes.graphs.interface import Graph, Note, PassResult
from nmcompile.passes.permutation.layouts import Segments
from nmcompile.passes.removal.plan import RemovalPlan, plan_removal

MORE = "where a layer reads their channels, these hold more than one number"


@dataclass(frozen=True)
class RemovalResult(PassResult):
    """A pass result; `shapes` are those that the weights had of the layers that are smaller now."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class RemoveZeroChannels:
    """Make layers smaller by the channels that the model can do without; its function stays.

    Filters that are zero throughout, as pruning of whole filters leaves them
    (`torch.nn.utils.prune.ln_structured`), make one number of everything: their bias, and what the
    operators behind make of that. Where it is zero, or can be added elsewhere, the filter goes, and
    with it all that its channel passes through: depthwise filters, batch norms, constants, and what
    layers have for it that read it. So does a filter whose channel nothing multiplies with more
    than zeros. Legal cases: `nmcompile.passes.removal.plan.plan_removal`;
    `nmcompile.passes.permutation.spaces` says which channels belong together, and which have to
    stay (inputs and outputs of the model, splits, groups, what tells channels apart).
    """

    name = "remove_zero_channels"

    def call(self, graph: Graph) -> RemovalResult:
        """Run on `graph` in place, until nothing more can go."""
        before = {op.name: op.weight.shape for op in graph.ops() if op.weight is not None}
        plan = plan_removal(graph)
        modified = bool(plan.kept)
        while plan.kept:
            _apply(graph, plan)
            plan = plan_removal(graph)
        shapes, notes = {}, []
        for op in graph.ops():
            if op.kind not in ("conv", "linear") or op.weight is None:
                continue
            had, left = before[op.name], op.weight.shape
            if had != left:
                shapes[op.name] = had
            said = []
            if had[0] != left[0]:
                said.append(f"{had[0]} -> {left[0]} filters: the model does without the others")
            zero = int((~op.weight.reshape(len(op.weight), -1).any(1)).sum())
            if zero:
                reason = _why_left(plan, plan.spaces.outputs.get(op.name, ()))
                verbs = "is zero and stays" if zero == 1 else "are zero and stay"
                said.append(f"{zero} of its {left[0]} filters {verbs}: {reason}")
            if said:
                notes.append(Note(op.name, "; ".join(said), left=had[0] == left[0]))
        return RemovalResult(graph, modified, tuple(notes), shapes)


def _apply(graph: Graph, plan: RemovalPlan) -> None:
    for constant, axis, order in plan.spaces.reorders(plan.kept):
        graph.reorder(constant, axis, order)
    for op in graph.ops():
        segments, shape = plan.spaces.values.get(op.output, ()), graph.shape(op.output)
        if any(segment.space in plan.kept for segment in segments):
            assert shape is not None, "channels that can go are those of known shapes"
            graph.resize(op, (shape[0], _width(segments, plan.kept), *shape[2:]))
    for op in graph.ops():
        if op.kind in ("conv", "linear") and op.name in plan.folded:
            weight, bias = plan.folded[op.name]
            moved = partial(plan.spaces.moved, op.name, orders=plan.kept)
            graph.set_weight(op, moved(weight), None if bias is None else moved(bias))
    graph.sweep()


def _width(segments: Segments, kept: Mapping[int, np.ndarray]) -> int:
    return sum(len(kept.get(s.space, range(s.size))) * s.repeat for s in segments)


def _why_left(plan: RemovalPlan, segments: Segments) -> str:
    reasons = (plan.left.get(segment.space) for segment in segments)
    return next(filter(None, reasons), MORE)
