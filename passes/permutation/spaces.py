"""Which channels of a model may be put in another order, and what must move with them.

A space is a set of channels that have one order wherever they appear: what a layer writes, all
operands of a residual sum, a tensor and its concatenations. Axis 1 of every tensor is a list of
segments, one per space that lies there. A space is free if every operator that touches it is known
to treat channels one by one; any other operator fixes it, with a reason.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Op, Value


@dataclass(frozen=True)
class Segment:
    """`size` channels of a space, each `repeat` times in a row (flattened images)."""

    space: int
    size: int
    repeat: int = 1


Segments = tuple[Segment, ...]


@dataclass(frozen=True)
class Touch:
    """A constant whose axis has the channels of `segments`, in their order."""

    constant: Value
    axis: int
    segments: Segments


@dataclass(frozen=True)
class Space:
    """`fixed` says why its order must stay, None where it is free."""

    size: int
    fixed: str | None


@dataclass(frozen=True, eq=False)
class ChannelSpaces:
    """The outcome of `find_channel_spaces`.

    Attributes:
        spaces: by number.
        inputs: for conv and linear layers, depthwise ones excepted, the segments of what they read.
        outputs: for all of them, those of what they write.
        touches: the constants that move with the spaces.
        values: the segments of the tensors along axis 1.
    """

    spaces: Mapping[int, Space]
    inputs: Mapping[str, Segments]
    outputs: Mapping[str, Segments]
    touches: tuple[Touch, ...]
    values: Mapping[Value, Segments]


def axis_order(segments: Segments, orders: Mapping[int, Array]) -> Array | None:
    """The order of a whole axis from those of its spaces; None where none of them moves.

    Args:
        segments: of the axis.
        orders: for spaces that move: place i holds what was channel order[i]; a shorter order
            leaves channels out.
    """
    if all(segment.space not in orders for segment in segments):
        return None
    parts, offset = [], 0
    for segment in segments:
        order = orders.get(segment.space, np.arange(segment.size))
        inner = np.arange(segment.repeat)
        parts.append(offset + (order[:, None] * segment.repeat + inner).reshape(-1))
        offset += segment.size * segment.repeat
    return np.concatenate(parts)


def find_channel_spaces(graph: Graph, movable: Collection[str] | None = None) -> ChannelSpaces:
    """Find the spaces of a graph; nothing is changed.

    Legal cases, beside operators whose `Op.flow` says what they do:

    1. A convolution of one group and a matrix product of rank 2 start a space with what they
       write, and read any.
    2. A depthwise convolution that writes as many channels as it reads keeps them in order.
    3. Sums and products unite the spaces of their operands where these have the same segments;
       operands of one channel, or of one number, join in with any.
    4. Constants of elementwise operators move where they have a place for each channel.
    5. A reshape that keeps the first two axes keeps the segments; one that flattens everything
       behind the first repeats each channel.

    Args:
        graph: with constant weights.
        movable: names of the only constants that may be reordered; None for all.
    """
    return _Finder(graph, movable).run()


class _Finder:
    def __init__(self, graph: Graph, movable: Collection[str] | None) -> None:
        self.graph, self.movable = graph, movable
        self.parent: list[int] = []
        self.sizes: list[int] = []
        self.reasons: dict[int, str] = {}
        self.values: dict[Value, Segments] = {}
        self.inputs: dict[str, Segments] = {}
        self.outputs: dict[str, Segments] = {}
        self.touches: list[Touch] = []

    def run(self) -> ChannelSpaces:
        read: Counter[Value] = Counter()
        for op in self.graph.ops():
            read.update(op.inputs)
            obstacle = self._visit(op)
            if obstacle is not None:
                self._give_up(op, obstacle)
        for value in self.graph.outputs():
            read[value] += 1
            self._fix(self._of(value), "they are an output of the model")
        for value, segments in self.values.items():
            if self.graph.uses(value) != read[value]:
                # Subgraphs read it, or an operator in a way that its inputs do not show.
                self._fix(segments, "something reads them that is not understood")
        return ChannelSpaces(
            {
                index: Space(size, self.reasons.get(index))
                for index, size in enumerate(self.sizes)
                if self.parent[index] == index
            },
            {name: self._resolve(segments) for name, segments in self.inputs.items()},
            {name: self._resolve(segments) for name, segments in self.outputs.items()},
            tuple(Touch(t.constant, t.axis, self._resolve(t.segments)) for t in self.touches),
            {value: self._resolve(segments) for value, segments in self.values.items()},
        )

    def _visit(self, op: Op) -> str | None:
        """Record what the operator does, or return why that is not known."""
        if op.kind in ("conv", "linear"):
            return self._layer(op)
        if op.flow == "opaque":
            return f"{op.where} is not known to treat channels one by one"
        shape = self.graph.shape(op.output)
        if shape is None or len(shape) < 2:
            return f"the shape of what {op.where} makes is not known to have channels"
        if op.flow == "elementwise":
            return self._elementwise(op, shape)
        if op.flow == "concat":
            return self._concat(op, shape)
        source = self.graph.shape(op.inputs[0])
        if source is None or len(source) < 2 or self.graph.constant(op.inputs[0]) is not None:
            return f"the shape of what {op.where} reads is not known"
        segments = self._of(op.inputs[0])
        if any(self.graph.constant(value) is None for value in op.inputs[1:]):
            return f"{op.where} has an input that is not understood"
        if op.flow == "reshape":
            return self._reshape(op, segments, source, shape)
        if shape[:2] != source[:2]:  # images of one model all have one batch size
            return f"{op.where} changes the number of channels"
        for parameter in op.parameters:
            self._touch(parameter.value, parameter.output, segments)
        self.values[op.output] = segments
        return None

    def _layer(self, op: Op) -> str | None:
        """Cases 1 and 2."""
        assert op.weight is not None
        outputs, inputs = op.weight.shape[:2]
        groups = op.conv.groups if op.conv else 1
        source = self.graph.shape(op.inputs[0])
        if source is None or len(source) != op.weight.ndim:
            return f"{op.where} reads a tensor of unknown or unusual rank"
        segments = self._of(op.inputs[0])
        if groups > 1 and not (inputs == 1 and groups == outputs):
            return f"{op.where} is a grouped convolution"
        if groups > 1:
            written = segments
        else:
            written = (self._new(outputs),)
            self.inputs[op.name] = segments
            if sum(s.size * s.repeat for s in segments) != inputs:
                return f"{op.where} does not read the channels of its input one by one"
        for parameter in op.parameters:
            self._touch(parameter.value, parameter.output, written)
            if groups == 1:
                self._touch(parameter.value, parameter.input, segments)
        self.values[op.output] = self.outputs[op.name] = written
        return None

    def _elementwise(self, op: Op, shape: tuple[int, ...]) -> str | None:
        """Cases 3 and 4."""
        joined: list[Segments] = []
        constants: list[tuple[Value, int]] = []
        for value in op.inputs:
            found = self.graph.shape(value)
            if found is None or len(found) > len(shape):
                return f"the shapes that {op.where} combines are not known"
            axis = len(found) - len(shape) + 1  # where the operand has the channels
            channels = found[axis] if axis >= 0 else 1
            constant = self.graph.constant(value) is not None
            if channels not in (1, shape[1]):
                return f"{op.where} does not combine equal numbers of channels"
            if constant:
                constants += [(value, axis)] if channels > 1 else []
            elif axis == 1 and channels == shape[1]:
                joined.append(self._of(value))
            elif axis != 1 and np.prod(found) != 1:
                return f"{op.where} combines tensors of different ranks"
        if not joined:
            return f"{op.where} spreads one channel over several"
        for other in joined[1:]:
            if [(s.size, s.repeat) for s in other] != [(s.size, s.repeat) for s in joined[0]]:
                return f"{op.where} combines tensors that are put together differently"
            for one, two in zip(joined[0], other, strict=True):
                self._unite(one.space, two.space)
        for value, axis in constants:
            self._touch(value, axis, joined[0])
        self.values[op.output] = joined[0]
        return None

    def _concat(self, op: Op, shape: tuple[int, ...]) -> str | None:
        shapes = [self.graph.shape(value) for value in op.inputs]
        if any(found is None or len(found) != len(shape) for found in shapes):
            return f"the shapes that {op.where} puts together are not known"
        if sum(found[1] for found in shapes if found is not None) != shape[1]:
            return f"{op.where} does not put its inputs together one by one"
        self.values[op.output] = tuple(s for value in op.inputs for s in self._of(value))
        return None

    def _reshape(
        self, op: Op, segments: Segments, source: tuple[int, ...], shape: tuple[int, ...]
    ) -> str | None:
        """Case 5."""
        if shape[:2] == source[:2]:
            self.values[op.output] = segments
        elif len(shape) == 2 and shape[0] == source[0]:
            repeat = int(np.prod(source[2:]))
            self.values[op.output] = tuple(
                Segment(s.space, s.size, s.repeat * repeat) for s in segments
            )
        else:
            return f"{op.where} takes channels apart or together"
        return None

    def _give_up(self, op: Op, reason: str) -> None:
        """Fix all that the operator touches."""
        for value in op.inputs:
            self._fix(self._of(value), reason)
        self.values.pop(op.output, None)
        self._fix(self._of(op.output, reason), reason)
        if op.kind in ("conv", "linear"):
            self.inputs[op.name] = self._of(op.inputs[0])
            self.outputs[op.name] = self._of(op.output)

    def _of(self, value: Value, reason: str = "they are an input of the model") -> Segments:
        """The segments of a tensor; what no operator has made known is fixed."""
        if value not in self.values:
            shape = self.graph.shape(value)
            channels = shape[1] if shape is not None and len(shape) > 1 else 1
            segments = (self._new(channels),)
            if self.graph.constant(value) is not None:
                self._fix(segments, "they are constant")
                return segments
            self._fix(segments, reason)
            self.values[value] = segments
        return self.values[value]

    def _touch(self, constant: Value, axis: int | None, segments: Segments) -> None:
        if axis is None:
            return
        array, name = self.graph.constant(constant), self.graph.stored_name(constant)
        assert array is not None
        if array.shape[axis] == 1 and array.size == 1:
            return
        readers = self.graph.readers(constant)
        if array.shape[axis] != sum(s.size * s.repeat for s in segments):
            self._fix(segments, f"constant {name} of shape {array.shape} does not fit them")
        elif readers != 1:
            self._fix(segments, f"constant {name} is read by {readers} operators")
        elif self.movable is not None and name not in self.movable:
            self._fix(segments, f"constant {name} cannot be reordered")
        self.touches.append(Touch(constant, axis, segments))

    def _new(self, size: int) -> Segment:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return Segment(self.parent[-1], size)

    def _root(self, space: int) -> int:
        while self.parent[space] != space:
            self.parent[space] = self.parent[self.parent[space]]
            space = self.parent[space]
        return space

    def _unite(self, one: int, two: int) -> None:
        first, second = sorted((self._root(one), self._root(two)))
        if first != second:
            self.parent[second] = first
            reason = self.reasons.pop(second, None)
            if reason is not None:
                self.reasons.setdefault(first, reason)

    def _fix(self, segments: Iterable[Segment], reason: str) -> None:
        for segment in segments:
            self.reasons.setdefault(self._root(segment.space), reason)

    def _resolve(self, segments: Sequence[Segment]) -> Segments:
        return tuple(Segment(self._root(s.space), s.size, s.repeat) for s in segments)
