"""Which constants move with the channels of a model."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from nmcompile.passes.graphs.interface import Array, Graph, Value
from nmcompile.passes.permutation.algebra import OPERANDS, Algebra
from nmcompile.passes.permutation.layouts import Layout, Segments


@dataclass(frozen=True)
class Touch:
    """A constant whose axis has the channels of `segments`, in their order."""

    constant: Value
    axis: int
    segments: Segments


class Touches:
    """Notes constants, and fixes the channels of those that cannot move.

    found: all that were noted; their segments may have been split since.
    """

    def __init__(self, graph: Graph, algebra: Algebra, movable: Collection[str] | None) -> None:
        """Of a graph; `movable` names the only constants that may be reordered, None is all."""
        self.graph, self.algebra, self.movable = graph, algebra, movable
        self.found: list[Touch] = []

    def operand(
        self, constant: Value, layout: Layout, where: str, but: Collection[int] = ()
    ) -> None:
        """A constant operand moves with the channels of the output, but along some axes."""
        shape = self.graph.shape(constant)
        assert shape is not None
        missing = len(layout.axes) - len(shape)
        for group in layout.groups:
            axes = [axis for axis, _ in layout.digits(group)]
            read = [a for a in axes if a >= missing and shape[a - missing] > 1 and a not in but]
            if len(axes) == 1 and read:
                self.along(constant, read[0] - missing, layout, read[0])
                continue
            array = self.graph.constant(constant)
            assert array is not None
            for axis in (axis for axis in read if not _uniform(array, axis - missing)):
                self.algebra.fix_along(layout, group, axis, f"{where} {OPERANDS}")

    def along(self, constant: Value, axis: int | None, layout: Layout, place: int) -> None:
        """An axis of a constant follows axis `place` of a tensor."""
        segments = layout.along(place)
        if segments is not None:
            self.axis(constant, axis, segments)
        else:
            for group in layout.groups_in([place]):
                name = self.graph.stored_name(constant)
                reason = f"constant {name} does not fit them"
                self.algebra.fix_along(layout, group, place, reason)

    def axis(self, constant: Value, axis: int | None, segments: Segments) -> None:
        """An axis of a constant, if it has one, has these channels."""
        if axis is None:
            return
        array, name = self.graph.constant(constant), self.graph.stored_name(constant)
        assert array is not None
        if array.shape[axis] == 1 and array.size == 1:
            return
        readers = self.graph.readers(constant)
        obstacle = None
        if array.shape[axis] != sum(s.size * s.repeat for s in segments):
            obstacle = f"constant {name} of shape {array.shape} does not fit them"
        elif readers != 1:
            obstacle = f"constant {name} is read by {readers} operators"
        elif self.movable is not None and name not in self.movable:
            obstacle = f"constant {name} cannot be reordered"
        if obstacle is None:
            self.found.append(Touch(constant, axis, segments))
        elif _uniform(array, axis):
            # It is the same in any order, but not of any length.
            self.algebra.unions.count(segments, obstacle)
        else:
            self.algebra.unions.fix(segments, obstacle)


def _uniform(array: Array, axis: int) -> bool:
    """Whether all slices along an axis are the same, so that their order is of no consequence."""
    first, last = (np.take(array, [place], axis) for place in (0, -1))
    return bool((first == last).all() and (array == first).all())
