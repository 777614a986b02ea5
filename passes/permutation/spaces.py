"""Which channels of a model may be put in another order, and what must move with them.

A space is a set of channels that have one order wherever they appear: what a layer writes, all
operands of a residual sum, a tensor and its concatenations. A space is free if every operator that
touches it is known to treat its channels one by one; any other operator fixes it, with a reason.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Op, Value
from nmcompile.passes.permutation.algebra import UNKNOWN, Algebra, without_axes
from nmcompile.passes.permutation.layouts import Factor, Layout, Segments, plain
from nmcompile.passes.permutation.touches import Touch, Touches

CONSTANT = "they are constant"

_OPERANDS = {"product": 2, "lookup": 2, "attention": 4}
"""How many inputs are tensors whose layouts count; the others are constants."""


@dataclass(frozen=True)
class Space:
    """`fixed` says why its order must stay, `counted` why all of its channels must, or None."""

    size: int
    fixed: str | None
    counted: str | None = None


@dataclass(frozen=True, eq=False)
class ChannelSpaces:
    """The outcome of `find_channel_spaces`.

    Attributes:
        spaces: by number.
        inputs: for conv and linear layers, depthwise ones excepted, the segments of what they read.
        outputs: for all of them, those of what they write.
        touches: the constants that move with the spaces.
        values: the segments of the tensors along axis 1, where these are all of a group.
    """

    spaces: Mapping[int, Space]
    inputs: Mapping[str, Segments]
    outputs: Mapping[str, Segments]
    touches: tuple[Touch, ...]
    values: Mapping[Value, Segments]

    def touches_layer(self, name: str, space: int) -> bool:
        """Whether a layer reads or writes channels of a space."""
        both = (*self.outputs.get(name, ()), *self.inputs.get(name, ()))
        return any(segment.space == space for segment in both)

    def moved(self, name: str, weight: Array, orders: Mapping[int, Array]) -> Array:
        """The weight or bias of a layer in those orders; itself where none concerns it."""
        outputs, inputs = self.outputs.get(name, ()), self.inputs.get(name, ())
        for axis, segments in enumerate((outputs, inputs)[: weight.ndim]):
            order = axis_order(segments, orders)
            weight = weight if order is None else np.take(weight, order, axis)
        return weight

    def reorders(self, orders: Mapping[int, Array]) -> Iterator[tuple[Value, int, Array]]:
        """The constants that those orders move, along which axis, and how."""
        for touch in self.touches:
            order = axis_order(touch.segments, orders)
            if order is not None:
                yield touch.constant, touch.axis, order


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

    Legal cases, beside operators whose `Op.flow` says what they do (`Algebra` has what follows):

    1. A convolution of one group and a matrix product start a space with what they write, and read
       any: axis 1 of an image, the last axis for a product.
    2. A depthwise convolution that writes as many channels as it reads keeps them in order.
    3. A constant that is handed on, as a class token, starts a space along its last axis.
    4. Where an operator tells the outer channels of a group apart, as the heads of attention, the
       inner ones of each still have an order: a space for each head.

    Args:
        graph: with constant weights.
        movable: names of the only constants that may be reordered; None for all.
    """
    return _Finder(graph, movable).run()


class _Finder:
    """Follows channels from operator to operator.

    values: the layouts of tensors; what is no key has not been seen.
    handed: by constant that is read as a tensor, the channels along its last axis.
    """

    def __init__(self, graph: Graph, movable: Collection[str] | None) -> None:
        self.graph = graph
        self.algebra = Algebra()
        self.unions = self.algebra.unions
        self.values: dict[Value, Layout] = {}
        self.handed: dict[Value, Segments] = {}
        self.inputs: dict[str, Segments] = {}
        self.outputs: dict[str, Segments] = {}
        self.touched = Touches(graph, self.algebra, movable)

    def run(self) -> ChannelSpaces:
        read: Counter[Value] = Counter()
        for op in self.graph.ops():
            read.update(op.inputs)
            obstacle = self._visit(op)
            if obstacle is not None:
                self._give_up(op, obstacle)
        for value in self.graph.outputs():
            read[value] += 1
            if value in self.values:
                self.algebra.fix(self.values[value], "they are an output of the model")
        for value, layout in self.values.items():
            if self.graph.uses(value) != read[value]:
                # Subgraphs read it, or an operator in a way that its inputs do not show.
                self.algebra.fix(layout, "something reads them that is not understood")
        resolve = self.unions.resolve
        return ChannelSpaces(
            {index: Space(*entry) for index, entry in self.unions.spaces().items()},
            {name: resolve(segments) for name, segments in self.inputs.items()},
            {name: resolve(segments) for name, segments in self.outputs.items()},
            tuple(replace(t, segments=resolve(t.segments)) for t in self.touched.found),
            {value: resolve(_along_channels(layout)) for value, layout in self.values.items()},
        )

    def _visit(self, op: Op) -> str | None:
        """Record what the operator does, or return why that is not known."""
        if self.graph.constant(op.output) is not None:
            return None  # a dequantisation, which constants are read through
        if op.kind in ("conv", "linear"):
            return self._layer(op)
        if op.flow.kind == "opaque":
            return f"{op.where} {UNKNOWN}"
        if op.flow.kind in ("elementwise", "concat"):
            return self._together(op)
        if op.flow.kind == "slice":
            return self._slice(op)
        count = _OPERANDS.get(op.flow.kind, 1)
        if not all(map(self._is_constant, op.inputs[count:])):
            return f"{op.where} has an input that is not understood"
        operands = [self._of(value) for value in op.inputs[:count]]
        known = [operand for operand in operands if operand is not None]
        if len(known) < min(count, max(len(op.inputs), 1)):
            return f"the shapes of what {op.where} reads are not known"
        found = self._single(op, known)
        if isinstance(found, Layout):
            return self._keep(op.output, found, op)
        return found

    def _single(self, op: Op, operands: Sequence[Layout]) -> Layout | str:
        """The output of an operator with one, or why it is not known."""
        x, axes, where = operands[0], op.flow.axes, op.where
        shape = self.graph.shape(op.output)
        kind = op.flow.kind
        if kind == "product":
            if min(len(operand.axes) for operand in operands) < 2:
                return f"{where} multiplies vectors"
            return self.algebra.product(operands[0], operands[1], where)
        if kind == "attention":
            return self._attention(op, operands)
        if kind == "parts":
            return x
        if kind == "pointwise":
            for parameter in op.parameters:
                self.touched.along(parameter.value, parameter.output, x, 1)
            return x
        if kind == "transpose":
            return x.transposed(axes)
        if kind == "lookup":
            return self._lookup(op, operands)
        if shape is None:
            return f"the shape of what {where} makes is not known"
        if kind == "reshape":
            return x.reshaped(shape) or f"{where} takes channels apart or together"
        if kind == "broadcast":
            self.algebra.count(x, x.groups, f"{where} says how many there are")
            spread = x.padded(len(shape))
            for axis, size in enumerate(shape):
                if not spread.axes[axis]:
                    spread = spread.with_axis(axis, (Factor(size),))
            return spread
        if kind == "along":
            return self.algebra.along(x, axes, shape, where)
        if kind == "reduce":
            return self.algebra.reduced(x, axes, len(shape) == len(x.axes), where)
        assert kind == "symmetric"
        self.algebra.symmetric(x, axes, where)
        for value in op.inputs[1:]:
            self.touched.operand(value, x, where)
        return x

    def _layer(self, op: Op) -> str | None:
        """Cases 1 and 2."""
        assert op.weight is not None
        (outputs, inputs), groups = op.weight.shape[:2], op.groups
        source = self._of(op.inputs[0])
        if source is None or (op.kind == "conv" and len(source.axes) != op.weight.ndim):
            return f"{op.where} reads a tensor of unknown or unusual rank"
        axis = 1 if op.kind == "conv" else len(source.axes) - 1
        if groups > 1 and not (inputs == 1 and groups == outputs):
            return f"{op.where} is a grouped convolution"
        if source.size(axis) != inputs * groups:
            return f"{op.where} does not read the channels of its input one by one"
        shape = self.graph.shape(op.output)
        if shape is None:
            return f"the shape of what {op.where} makes is not known"
        mixed = f"{op.where} reads channels that are not one after the other"
        segments = source.along(axis)
        if segments is None:
            why = mixed if source.groups_in([axis]) else source.why
            source = self.algebra.dropped(source, source.groups_in([axis]), mixed)
            segments = (self.unions.new(inputs * groups, why or "their order is fixed"),)
        if op.kind == "conv" and not _pointwise(op):
            image = range(2, len(source.axes))
            source = self.algebra.along(source, image, shape, op.where)
        if groups > 1:
            written, made_of = segments, source
        else:
            new = self.unions.new(outputs)
            written = (new,)
            made_of = self.algebra.with_group(source.with_axis(axis, ()), axis, written)
            self.inputs[op.name] = segments
        self.outputs[op.name] = written
        for parameter in op.parameters:
            self.touched.axis(parameter.value, parameter.output, written)
            if groups == 1:
                self.touched.axis(parameter.value, parameter.input, segments)
        return self._keep(op.output, made_of, op)

    def _together(self, op: Op) -> str | None:
        """Elementwise operators and concatenations, whose constants move along."""
        shape = self.graph.shape(op.output)
        if shape is None:
            return f"the shape of what {op.where} makes is not known"
        constants = [value for value in op.inputs if self._is_constant(value)]
        operands = [self._of(value) for value in op.inputs if value not in constants]
        known = [operand for operand in operands if operand is not None]
        if len(known) < len(operands) or not known:
            return f"the shapes that {op.where} combines are not known"
        if op.flow.kind == "elementwise":
            found = self.algebra.elementwise(known, len(shape), op.where)
            for axis, size in enumerate(shape):
                if not found.axes[axis]:  # a constant spreads it
                    found = found.with_axis(axis, (Factor(size),))
        else:
            (axis,) = op.flow.axes
            bare = [self._bare(value, axis) for value in op.inputs]
            found = self.algebra.concat([b for b in bare if b is not None], axis, op.where)
        for value in constants:
            self.touched.operand(value, found, op.where, op.flow.axes)
        return self._keep(op.output, found, op)

    def _bare(self, value: Value, axis: int) -> Layout | None:
        """An operand of a concatenation; of a constant no more than its extent along the axis."""
        if not self._is_constant(value):
            return self._of(value)
        shape = self.graph.shape(value)
        assert shape is not None
        return plain([size if i == axis else 1 for i, size in enumerate(shape)], CONSTANT)

    def _slice(self, op: Op) -> str | None:
        source, (axis,) = self._of(op.inputs[0]), op.flow.axes
        if source is None:
            return f"the shape of what {op.where} reads is not known"
        for value, (start, stop) in zip((op.output, *op.others), op.flow.pieces, strict=True):
            part = self.algebra.cut(source, axis, start, stop, op.where)
            shape = self.graph.shape(value)
            if shape is not None and len(shape) < len(part.axes):
                part = without_axes(part, [axis])
            obstacle = self._keep(value, part, op)
            if obstacle is not None:
                return obstacle
        return None

    def _attention(self, op: Op, operands: Sequence[Layout]) -> Layout | str:
        query, key, value = operands[:3]
        rank = len(query.axes)
        if rank < 2 or len(key.axes) != rank or len(value.axes) != rank:
            return f"{op.where} reads tensors of different ranks"
        turned = key.transposed([*range(rank - 2), rank - 1, rank - 2])
        scores = self.algebra.product(query, turned, op.where)
        mixed = f"{op.where} {UNKNOWN}"
        for mask in operands[3:]:
            self.algebra.fix(mask, mixed)
        scores = self.algebra.dropped(scores, list(scores.groups), mixed)
        return self.algebra.product(scores, value, op.where)

    def _lookup(self, op: Op, operands: Sequence[Layout]) -> Layout | str:
        table, places = op.inputs[0], operands[1]
        array = self.graph.constant(table)
        if array is None or array.ndim != 2:
            return f"{op.where} {UNKNOWN}"
        places = self.algebra.dropped(
            places, list(places.groups), f"{op.where} takes them for places"
        )
        columns = operands[0].along(1)
        rows = Layout((*places.axes, ()), places.groups, places.why)
        if columns is None:
            return rows.with_axis(len(places.axes), (Factor(array.shape[1]),))
        return self.algebra.with_group(rows, len(places.axes), columns)

    def _give_up(self, op: Op, reason: str) -> None:
        """Fix all that the operator touches."""
        for value in op.inputs:
            if value in self.values:
                self.algebra.fix(self.values[value], reason)
            self.unions.fix(self.handed.get(value, ()), reason)
        for value in (op.output, *op.others):
            shape = self.graph.shape(value)
            if shape is not None:
                self.values[value] = plain(shape, reason)
        if op.kind in ("conv", "linear"):
            assert op.weight is not None
            outputs, inputs = op.weight.shape[:2]
            self.inputs[op.name] = (self.unions.new(inputs * op.groups, reason),)
            self.outputs[op.name] = (self.unions.new(outputs, reason),)

    def _keep(self, value: Value, layout: Layout, op: Op) -> str | None:
        """Note the layout of an output; a reason where that is not the shape that it has."""
        shape = self.graph.shape(value)
        if shape is not None and shape != tuple(map(layout.size, range(len(layout.axes)))):
            self.algebra.fix(layout, f"{op.where} changes the number of channels")
            return f"{op.where} changes the number of channels"
        aside = [
            group
            for group in layout.groups
            if shape is None or [axis for axis, _ in layout.digits(group)] != [1]
        ]
        self.algebra.count(layout, aside, f"{op.where} has them along another axis than 1")
        self.values[value] = layout
        return None

    def _is_constant(self, value: Value) -> bool:
        return value not in self.values and self.graph.constant(value) is not None

    def _of(self, value: Value) -> Layout | None:
        """The layout of a tensor, None where its shape is not known."""
        if value not in self.values:
            shape = self.graph.shape(value)
            if shape is None:
                return None
            if not self._is_constant(value):
                self.values[value] = plain(shape, "they are an input of the model")
                return self.values[value]
            # Case 3. Kept out of `values`, as a constant it may be read as an operand, too.
            found = plain(shape, CONSTANT)
            if not shape or shape[-1] == 1:
                return found
            self.handed[value] = segments = (self.unions.new(shape[-1]),)
            self.touched.axis(value, len(shape) - 1, segments)
            return self.algebra.with_group(found, len(shape) - 1, segments)
        return self.values[value]


def _along_channels(layout: Layout) -> Segments:
    return (layout.along(1) or ()) if len(layout.axes) > 1 else ()


def _pointwise(conv: Op) -> bool:
    """Whether a convolution treats each place of an image by itself, as matrix products do."""
    assert conv.weight is not None and conv.conv is not None
    kernel = conv.weight.shape[2:]
    return {*kernel, *conv.conv.stride} == {1} and not conv.padded
