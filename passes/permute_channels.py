"""Put channels in the order in which a pattern keeps more of the weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Note, PassResult, Value
from nmcompile.passes.permutation.search import BlockSearch, Effort, GroupSearch, LayerSearch
from nmcompile.passes.permutation.spaces import ChannelSpaces, find_channel_spaces
from nmcompile.sparsity import NM, OneByN, Pattern, check, detect
from nmcompile.sparsity.groups import as_oihw
from nmcompile.sparsity.permute import Deadline, Found
from nmcompile.sparsity.rearrange import MaskRule

OnStep = Callable[[int, int], None]
"""Told how much is done, of how much."""

STEPS = 1000
"""What `OnStep` counts to."""

_SLACK = 2.0
"""A search may take this times its share of the time that is left: estimates are no better."""


@dataclass(frozen=True)
class PermutedLayer:
    """What reordering does for one layer.

    Attributes:
        layer: its name.
        before: share of its squared magnitude that the pattern keeps in the order given, 0 to 1.
        after: the same in the order found.
        channels: how many of its channels the search could reorder.
        left: why it could reorder none, or None; the layer moves with others all the same.
    """

    layer: str
    before: float
    after: float
    channels: int
    left: str | None = None


@dataclass(frozen=True, eq=False)
class Reorder:
    """Slice i of a constant along `axis` is to become its slice order[i]."""

    constant: Value
    axis: int
    order: Array


@dataclass(frozen=True, eq=False)
class PermutationPlan:
    """What to reorder, and what that does.

    reorders: of all constants together; the function stays the same only if all are made.
    layers: one row per layer that was asked for.
    finished: whether all searches ended by themselves, so that the seed alone decides.
    """

    reorders: tuple[Reorder, ...]
    layers: tuple[PermutedLayer, ...]
    finished: bool


@dataclass(frozen=True)
class PermuteResult(PassResult):
    """A pass result with one row per layer; `finished` as in `PermutationPlan`."""

    layers: tuple[PermutedLayer, ...] = ()
    finished: bool = True


class PermuteChannels:
    """Reorder channels so that projection drops less; the function of the model stays the same.

    Legal cases:

    1. N:M: the channels that layers read, in groups along the input channels
       (`nmcompile.sparsity.permute`).
    2. 1xN: the output channels that layers write, in blocks (`nmcompile.sparsity.rearrange`).

    Whatever touches the channels moves with them: weights and biases of the layers that write
    them, batch norms, depthwise convolutions, constants, and the layers that read them
    (`nmcompile.passes.permutation.spaces` says which channels can move). Layers that share
    channels, as around a residual sum, share the order; together they never keep less than before.
    Channels stay where they are if a layer that is not asked for would lose a pattern.

    Source: Pool and Yu, NeurIPS 2021; Lin et al., TPAMI 2022.
    """

    name = "permute_channels"

    def __init__(
        self,
        pattern: Pattern,
        layers: Collection[str],
        *,
        density: float | None = None,
        seed: int = 0,
        time_limit: float = 60.0,
        on_step: OnStep | None = None,
    ) -> None:
        """Set the pattern and the layers.

        Args:
            pattern: N:M or 1xN.
            layers: the names of the layers that are to be projected onto it.
            density: as in `nmcompile.sparsity.project`.
            seed: of the searches.
            time_limit: seconds for all searches together.
            on_step: told about progress.
        """
        self.pattern, self.layers, self.density = pattern, layers, density
        self.seed, self.time_limit, self.on_step = seed, time_limit, on_step

    def call(self, graph: Graph) -> PermuteResult:
        """Run on `graph` in place."""
        plan = plan_permutation(
            graph,
            layer_search(self.pattern, density=self.density),
            self.layers,
            seed=self.seed,
            time_limit=self.time_limit,
            on_step=self.on_step,
        )
        for reorder in plan.reorders:
            graph.reorder(reorder.constant, reorder.axis, reorder.order)
        notes = tuple(_note(row, self.pattern) for row in plan.layers)
        return PermuteResult(graph, bool(plan.reorders), notes, plan.layers, plan.finished)


def layer_search(
    pattern: Pattern, *, density: float | None = None, rule: MaskRule | None = None
) -> LayerSearch:
    """How the layers of a pattern are searched.

    Args:
        pattern: N:M or 1xN.
        density: for 1xN projected by `nmcompile.sparsity.project`.
        rule: for 1xN otherwise: which blocks are kept.
    """
    if isinstance(pattern, NM):
        return GroupSearch(pattern)
    assert isinstance(pattern, OneByN)
    return BlockSearch(pattern, density, rule)


def plan_permutation(
    graph: Graph,
    search: LayerSearch,
    names: Collection[str],
    *,
    seed: int = 0,
    time_limit: float = 60.0,
    on_step: OnStep | None = None,
    movable: Collection[str] | None = None,
) -> PermutationPlan:
    """Find out what to reorder; the graph stays as it is.

    Args:
        graph: the model.
        search: of the pattern.
        names: layers that will get the pattern.
        seed: of the searches.
        time_limit: seconds for all of them together.
        on_step: told about progress.
        movable: names of the only constants that may be reordered; None for all.
    """
    spaces = find_channel_spaces(graph, movable)
    weights = {layer.name: as_oihw(layer.weight) for layer in graph.layers()}
    wanted = [name for name in weights if name in names]
    planner = _Planner(spaces, weights, search, wanted)
    planner.run(seed, Deadline.after(time_limit), on_step)
    orders = planner.orders
    reorders = tuple(Reorder(*moves) for moves in spaces.reorders(orders))
    rows = []
    for name in wanted:
        before = search.energy(weights[name])
        moved = planner.moved(name, orders)
        after = before if moved is weights[name] else search.energy(moved)
        channels = planner.channels.get(name, 0)
        left = None if channels else planner.left.get(name, "it has no order of its own")
        rows.append(PermutedLayer(name, before, after, channels, left))
    return PermutationPlan(reorders, tuple(rows), planner.finished)


class _Planner:
    """orders: of the spaces that move; channels, left: as in `PermutedLayer`, by layer."""

    def __init__(
        self,
        spaces: ChannelSpaces,
        weights: Mapping[str, Array],
        search: LayerSearch,
        wanted: Collection[str],
    ) -> None:
        self.spaces, self.weights, self.search, self.wanted = spaces, weights, search, wanted
        self.orders: dict[int, Array] = {}
        self.channels: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self.finished = True
        self._holders: dict[int, str | None] = {}
        self._held: dict[str, list[Pattern]] = {}

    def run(self, seed: int, deadline: Deadline, on_step: OnStep | None) -> None:
        """Search all spaces, each with the others held where they are."""
        members: dict[int, list[str]] = {}
        for name in self.wanted:
            for segment in self.search.segments(self.spaces, name):
                reason = self.spaces.spaces[segment.space].fixed
                reason = reason or self.search.obstacle(self.spaces, name, self.weights[name])
                reason = reason or self._holder(segment.space)
                if reason is not None:
                    self.left.setdefault(name, reason)
                elif name not in members.setdefault(segment.space, []):
                    members[segment.space].append(name)
        sizes = {space: self.spaces.spaces[space].size for space in members}
        for space, names in members.items():
            for name in names:
                self.channels[name] = self.channels.get(name, 0) + sizes[space]
        searches = []
        for escapes in self.search.rounds:
            for space, names in members.items():
                weights = [self.weights[name] for name in names]
                cost = self.search.cost(sizes[space], weights, escapes)
                searches.append((space, escapes, cost))
        done, total, shown = 0.0, max(sum(cost for _, _, cost in searches), 1.0), 0
        for space, escapes, cost in searches:
            part_of_rest = cost / max(total - done, 1.0)
            share = deadline.left() * min(_SLACK * part_of_rest, 1.0)

            def on_share(part: float, base: float = done, cost: float = cost) -> None:
                nonlocal shown
                shown = max(shown, round(STEPS * (base + part * cost) / total))
                if on_step is not None:
                    on_step(shown, STEPS)

            on_share(0.0)
            moved = {name: self.moved(name, self.orders) for name in members[space]}
            effort = Effort(seed, escapes, Deadline.after(share), on_share)
            found = self.search.run(self.spaces, space, moved, effort)
            self._take(space, members[space], found)
            done += cost

    def _take(self, space: int, names: Collection[str], found: Found) -> None:
        """Go over to the order that a search of these layers found, if all layers keep more."""
        self.finished &= found.finished
        if found.after <= found.before:
            return
        order = self.orders.get(space, np.arange(len(found.order)))[found.order]
        orders = {**self.orders, space: order}
        # Layers that move along without being searched may lose more than the others gain.
        pattern = self.search.pattern
        others = [n for n in self.wanted if n not in names and self._breaks(n, pattern, space)]
        gain = found.after - found.before
        for name in others:
            old, new = self.moved(name, self.orders), self.moved(name, orders)
            gain += self.search.magnitude(new) - self.search.magnitude(old)
        if gain > 0:
            self.orders = orders

    def moved(self, name: str, orders: Mapping[int, Array]) -> Array:
        """The weight of a layer in those orders; the weight itself where none concerns it."""
        return self.spaces.moved(name, self.weights[name], orders)

    def _holder(self, space: int) -> str | None:
        """Which layer that is not searched has a pattern that another order would break."""
        if space not in self._holders:
            self._holders[space] = next(
                (
                    f"layer {name} has {pattern}, which another order would break"
                    for name in self.weights
                    if name not in self.wanted and self.spaces.touches_layer(name, space)
                    for pattern in self._patterns(name)
                    if self._breaks(name, pattern, space)
                ),
                None,
            )
        return self._holders[space]

    def _breaks(self, name: str, pattern: Pattern, space: int) -> bool:
        """Whether a layer may lose a pattern when the space is reordered."""
        written = any(s.space == space for s in self.spaces.outputs[name])
        read = any(s.space == space for s in self.spaces.inputs.get(name, ()))
        if isinstance(pattern, OneByN):
            return written
        if not isinstance(pattern, NM):
            return False
        # Whole filters may change places unless groups run from one into the next.
        filters = pattern.axis == "ic" or self.weights[name][0].size % pattern.m == 0
        return read or not filters

    def _patterns(self, name: str) -> list[Pattern]:
        """The patterns that a layer was given."""
        if name not in self._held:
            weight, asked = self.weights[name], self.search.pattern
            found = detect(weight)
            held = [found.pattern, *([asked] if check(weight, asked).ok else [])]
            self._held[name] = held if 0.0 < found.density < 1.0 else []
        return self._held[name]


def _note(row: PermutedLayer, pattern: Pattern) -> Note:
    return Note(row.layer, describe(row, pattern), left=row.left is not None)


def describe(row: PermutedLayer, pattern: Pattern) -> str:
    """A row for people."""
    text = (
        f"{pattern} keeps {row.after:.2%} of its energy, {row.before:.2%} before channels were "
        "reordered"
    )
    return text if row.left is None else f"{text} (no order was searched for it: {row.left})"
