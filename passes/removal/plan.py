"""Which channels a model can do without, and what its layers have to add for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Op
from nmcompile.passes.permutation.layouts import Segment
from nmcompile.passes.permutation.spaces import (
    ChannelSpaces,
    axis_order,
    find_channel_spaces,
)
from nmcompile.passes.removal.uniform import uniform_channels
from nmcompile.sparsity import NM, Detection, OneByN, detect

BEARER = "the numbers of those that are gone are added with its own by a layer that pads its input"
TORN = "the patterns of the layers that they are in skip more"


@dataclass(eq=False)
class RemovalPlan:
    """What to take out.

    Attributes:
        spaces: of the graph.
        kept: the channels that stay, ascending, of the spaces that lose some.
        folded: weight and bias of layers that add what they read of channels that go, with all
            their channels still.
        left: why channels that could do without stay, by space.
    """

    spaces: ChannelSpaces
    kept: dict[int, Array] = field(default_factory=dict)
    folded: dict[str, tuple[Array, Array | None]] = field(default_factory=dict)
    left: dict[int, str] = field(default_factory=dict)


def plan_removal(graph: Graph) -> RemovalPlan:
    """Find out what to take out; the graph stays as it is.

    A channel can go from everywhere in its space if each layer that reads it

    1. multiplies it with zeros only, or reads zeros (`uniform_channels`), or
    2. reads one number and pads nothing: the product goes into its bias, or
    3. reads one number and pads: the product goes into the weights of another such channel, which
       stays.

    One channel of each space stays. What goes leaves the fewest multiplications of the layers that
    the space is in, where an N:M or 1xN pattern that is lost skips none, nor do blocks that are
    torn apart: all that can go, only whole groups and blocks, or nothing.
    """
    planner = _Planner(graph)
    for space in sorted(planner.plan.spaces.spaces, reverse=True):  # readers before what they read
        planner.decide(space)
    return planner.plan


@dataclass(frozen=True, eq=False)
class _Reading:
    """A layer's reading of channels of one space, (O, size, ...) of its weight from `start` on."""

    op: Op
    segment: Segment
    start: int
    numbers: Array

    def columns(self, channels: Array) -> Array:
        """Where in the weight the channels are read, (channels, repeat)."""
        inner = np.arange(self.segment.repeat)
        return self.start + np.asarray(channels)[:, None] * self.segment.repeat + inner

    def needed(self, weight: Array) -> Array:
        """Which channels it multiplies with more than zeros: (size,) bool."""
        columns = self.columns(np.arange(self.segment.size)).reshape(-1)
        rows = weight[:, columns].reshape(len(weight), self.segment.size, -1)
        live: Array = np.asarray(rows.any((0, 2)))
        return live


class _Planner:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.plan = RemovalPlan(find_channel_spaces(graph))
        self.layers = {op.name: op for op in graph.ops() if op.kind in ("conv", "linear")}
        self.uniform = uniform_channels(graph)
        self.detections: dict[str, Detection] = {}

    def decide(self, space: int) -> None:
        """Choose what goes of one space, the later ones being decided."""
        known = self.plan.spaces.spaces[space]
        reason = known.fixed or known.counted
        if reason is not None:
            self.plan.left[space] = reason
            return
        readings = list(self._readings(space))
        free, padded = np.ones(known.size, bool), []
        for reading in readings:
            can, folding = self._can_go(reading)
            free &= can
            padded += [(reading, folding)] if folding.any() else []
        bearer = _bearer(padded, free)
        if bearer is not None:
            free[bearer] = False
            self.plan.left[space] = BEARER
        if free.all():
            free[0] = False
            self.plan.left[space] = "one of a layer has to"
        if free.any():
            self._choose(space, readings, free, bearer)

    def _choose(
        self, space: int, readings: list[_Reading], free: Array, bearer: int | None
    ) -> None:
        """Take out as much as leaves the fewest multiplications."""
        least = self._work(space, self.plan.kept, self.plan.folded)
        best, worst = None, least
        for gone in self._candidates(space, free):
            kept = {**self.plan.kept, space: np.flatnonzero(~gone)}
            folded = self._fold(readings, np.flatnonzero(gone), bearer)
            work = self._work(space, kept, folded)
            if work < least or (best is None and work == worst):
                best, least = (kept, folded), work
        if best is not None:
            self.plan.kept, self.plan.folded = best
        else:
            self.plan.left[space] = TORN

    def _readings(self, space: int) -> Iterator[_Reading]:
        for name, segments in self.plan.spaces.inputs.items():
            start, op = 0, self.layers[name]
            for segment in segments:
                width = segment.size * segment.repeat
                if segment.space == space:
                    numbers = self.uniform.get(op.inputs[0])
                    part = np.full(width, np.nan) if numbers is None else numbers[start:][:width]
                    yield _Reading(op, segment, start, part.reshape(segment.size, -1))
                start += width

    def _can_go(self, reading: _Reading) -> tuple[Array, Array]:
        """Which channels the layer can do without, and for which the weights of another change."""
        weight = self._weight(reading.op.name)
        order = axis_order(self.plan.spaces.outputs[reading.op.name], self.plan.kept)
        needed = reading.needed(weight if order is None else weight[order])
        zero, known = (reading.numbers == 0).all(1), ~np.isnan(reading.numbers).any(1)
        adds = needed & known & ~zero
        if reading.op.integers is not None or (reading.op.padded and reading.segment.repeat > 1):
            adds &= False  # integers stand for no sums of real numbers
        return ~needed | zero | adds, adds & reading.op.padded

    def _fold(
        self, readings: list[_Reading], gone: Array, bearer: int | None
    ) -> dict[str, tuple[Array, Array | None]]:
        """The weights and biases of layers that add what they read of channels that go."""
        folded = dict(self.plan.folded)
        for reading in readings:
            name, numbers = reading.op.name, reading.numbers[gone]
            weight, bias = folded.get(name, (reading.op.weight, reading.op.bias))
            assert weight is not None
            counted = np.nan_to_num(numbers) != 0
            columns, factors = reading.columns(gone)[counted], numbers[counted]
            rows = axis_order(self.plan.spaces.outputs[name], self.plan.kept)
            rows = np.arange(len(weight)) if rows is None else rows  # others have no sums
            read = weight[rows][:, columns].astype(np.float64)
            if not read.any():
                continue
            read = np.moveaxis(read, 1, -1) * factors
            weight = weight.astype(np.float64)
            weight[:, columns] = 0
            if reading.op.padded:
                assert bearer is not None
                place = int(reading.columns(np.array([bearer]))[0, 0])
                weight[rows, place] += read.sum(-1) / reading.numbers[bearer, 0]
            else:
                added = np.zeros(len(weight))
                added[rows] = read.reshape(len(rows), -1).sum(1)
                bias = added if bias is None else bias + added
            folded[name] = weight, bias
        return folded

    def _candidates(self, space: int, free: Array) -> Iterator[Array]:
        """All channels that can go; then whole groups of those that patterns hold together."""
        yield free
        lengths = {1}
        for name in self._touching(space):
            pattern = self._detected(name).pattern
            if isinstance(pattern, NM | OneByN):
                lengths.add(pattern.m if isinstance(pattern, NM) else pattern.n)
        length = int(np.lcm.reduce(sorted(lengths)))
        whole = len(free) - len(free) % length
        groups = free[:whole].reshape(-1, length).all(1)
        if groups.any():
            yield np.concatenate([np.repeat(groups, length), np.zeros(len(free) - whole, bool)])

    def _work(
        self,
        space: int,
        kept: Mapping[int, Array],
        folded: Mapping[str, tuple[Array, Array | None]],
    ) -> float:
        """Multiplications of the layers that a space is in, zeros that patterns skip excepted."""
        total = 0.0
        for name in self._touching(space):
            left = self.plan.spaces.moved(name, self._weight(name, folded), kept)
            shape = self.graph.shape(self.layers[name].output) or ()
            found, whole = detect(left), self._detected(name)
            # Blocks whose filters no longer follow each other are lost, too: rounding hides them,
            # and integer kernels have no use for them.
            torn = found.order is not None and whole.order is None
            same = found.pattern == whole.pattern and not torn
            total += np.prod(shape[:1] + shape[2:]) * left.size * (_share(found) if same else 1.0)
        return total

    def _detected(self, name: str) -> Detection:
        """The pattern that a layer has while it is whole."""
        if name not in self.detections:
            self.detections[name] = detect(self._weight(name, {}))
        return self.detections[name]

    def _touching(self, space: int) -> list[str]:
        return [name for name in self.layers if self.plan.spaces.touches_layer(name, space)]

    def _weight(
        self, name: str, folded: Mapping[str, tuple[Array, Array | None]] | None = None
    ) -> Array:
        """That of a layer, as `folded` has it, or else the plan."""
        folded = self.plan.folded if folded is None else folded
        weight = folded[name][0] if name in folded else self.layers[name].weight
        assert weight is not None
        return weight


def _bearer(padded: list[tuple[_Reading, Array]], free: Array) -> int | None:
    """The channel that stays for all that padding ends; `free` loses those it cannot be.

    Args:
        padded: readings with the channels that another one of theirs has to stand for.
        free: the channels that can go.
    """
    wanted = free & np.any([folding for _, folding in padded], 0)
    if not wanted.any():
        return None
    sizes = np.nan_to_num([np.abs(reading.numbers[:, 0]) for reading, _ in padded]).min(0)
    bearer = int(np.where(wanted, sizes, -1.0).argmax())
    for reading, folding in padded:
        if not np.nan_to_num(reading.numbers[bearer, 0]):
            free &= ~folding
    return bearer


def _share(found: Detection) -> float:
    """The share of a weight that its pattern has a kernel multiply."""
    if isinstance(found.pattern, NM):
        return found.pattern.n / found.pattern.m
    return found.density if isinstance(found.pattern, OneByN) else 1.0
