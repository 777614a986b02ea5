"""What operators do to layouts, and what that means for the spaces of their channels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from nmcompile.passes.permutation.layouts import Factor, Layout, Segments, made
from nmcompile.passes.permutation.unions import Unions

OPERANDS = "combines tensors that are put together differently"
UNKNOWN = "is not known to treat channels one by one"


class Algebra:
    """Layouts in, layouts out; spaces are united, split and fixed on the way.

    `where` is the operator, as a reason names it.

    Legal cases:

    1. Operands of an elementwise operator share the orders of channels that lie in the same factors
       of the same axes; an operand of one place joins in with any. Where one has channels and the
       other keeps its order, the channels keep theirs along that axis.
    2. Tensors put together along the channels have the segments of all, along another axis the same
       ones.
    3. A part of the channels, or of the outermost digit of them, takes its own order with it.
    4. Of a group with some digits along the axes of a sum or a softmax, the inner ones, each place
       of the outer ones has an order of its own.
    5. Two matrices share the order of what is multiplied and summed up; what lies along the rows of
       the first or the columns of the second stays. Outer digits along batch axes, as heads, keep
       their order.
    """

    def __init__(self) -> None:
        """Begin without spaces."""
        self.unions = Unions()
        self._groups = 0

    def fix(self, layout: Layout, reason: str) -> None:
        """Fix all channels of a tensor."""
        for segments in layout.groups.values():
            self.unions.fix(segments, reason)

    def count(self, layout: Layout, groups: Iterable[int], reason: str) -> None:
        """Groups of a tensor of which no channel can be left out."""
        for group in groups:
            self.unions.count(layout.groups[group], reason)

    def with_group(self, layout: Layout, axis: int, segments: Segments) -> Layout:
        """A tensor with a new group along an axis."""
        self._groups += 1
        size = sum(segment.size for segment in segments)
        axes = list(layout.axes)
        axes[axis] = (Factor(size, self._groups),)
        return made(axes, {**layout.groups, self._groups: segments}, layout.why)

    def join(self, one: Layout, two: Layout, where: str) -> Layout:
        """Case 1, for tensors of one rank."""
        places = {_place(one, group): group for group in one.groups}
        found = {group: places.get(_place(two, group)) for group in two.groups}
        same = {theirs: mine for theirs, mine in found.items() if mine is not None}
        for theirs, mine in same.items():
            self.unions.unite(one.groups[mine], two.groups[theirs])
        reason = f"{where} {OPERANDS}"
        two = self.dropped(
            two, [g for g in two.groups if g not in same and g in one.groups], reason
        )
        self._meet(one, [group for group in one.groups if group not in same.values()], two, reason)
        self._meet(two, [group for group in two.groups if group not in same], one, reason)
        # Of two groups in one axis that are not the same, that of `one` is kept.
        crossed = [
            f.group
            for a, b in zip(one.axes, two.axes, strict=True)
            for f in b
            if f.group is not None and f.group not in same and any(g.group is not None for g in a)
        ]
        two = self.dropped(two, crossed, reason)
        axes = []
        for a, b in zip(one.axes, two.axes, strict=True):
            ours = a and (any(f.group is not None for f in a) or all(f.group is None for f in b))
            axes.append(a if ours else [_renamed(factor, same) for factor in b])
        return made(axes, {**two.groups, **one.groups}, one.why or two.why)

    def _meet(self, layout: Layout, groups: Iterable[int], other: Layout, reason: str) -> None:
        """Fix what another tensor has in its own order."""
        for group in groups:
            for axis, _ in layout.digits(group):
                if other.axes[axis]:
                    self.fix_along(layout, group, axis, reason)

    def fix_along(self, layout: Layout, group: int, axis: int, reason: str) -> None:
        """Fix the digits of a group in one axis: inner ones are free where these are outer ones."""
        digits = layout.digits(group)
        inside = [index for index, (place, _) in enumerate(digits) if place == axis]
        segments = layout.groups[group]
        if inside == list(range(len(inside))) and len(inside) < len(digits):
            self.unions.split(segments, math.prod(f.size for _, f in digits[len(inside) :]))
        else:
            self.unions.fix(segments, reason)

    def elementwise(self, operands: Sequence[Layout], rank: int, where: str) -> Layout:
        """Case 1, for any number of tensors."""
        padded = [operand.padded(rank) for operand in operands]
        return reduce(lambda one, two: self.join(one, two, where), padded)

    def concat(self, operands: Sequence[Layout], axis: int, where: str) -> Layout:
        """Case 2."""
        channels = any(operand.groups_in([axis]) for operand in operands)
        parts: list[Segments] = []
        rest: list[Layout] = []
        total = sum(operand.size(axis) for operand in operands)
        for operand in operands:
            segments = operand.along(axis) if len(operand.axes[axis]) == 1 else None
            if segments is None:
                reason = operand.why or f"{where} does not put its inputs together one by one"
                operand = self.dropped(operand, operand.groups_in([axis]), reason)
                segments = (self.unions.new(operand.size(axis), reason),) if channels else ()
            parts.append(segments)
            rest.append(operand.with_axis(axis, ()))
        joined = self.elementwise(rest, len(rest[0].axes), where)
        if channels:
            return self.with_group(joined, axis, sum(parts, ()))
        return joined.with_axis(axis, (Factor(total),))

    def cut(self, layout: Layout, axis: int, start: int, stop: int, where: str) -> Layout:
        """Case 3: a part along an axis."""
        size = stop - start
        groups = layout.groups_in([axis])
        self.count(layout, groups, f"{where} takes channels apart")
        if size == layout.size(axis):
            return layout
        if len(layout.axes[axis]) == 1 and groups and layout.axes[axis][0].digit == 0:
            (group,) = groups
            digits = [factor for _, factor in layout.digits(group)]
            inner = math.prod(factor.size for factor in digits[1:])
            cut = self.unions.cut(layout.groups[group], start * inner, stop * inner)
            self._groups += 1
            axes = [
                [replace(f, group=self._groups) if f.group == group else f for f in factors]
                for factors in layout.axes
            ]
            axes[axis] = [replace(axes[axis][0], size=size)]
            return made(axes, {**layout.groups, self._groups: cut}, layout.why)
        kept = self.dropped(layout, groups, f"{where} takes channels apart")
        return kept.with_axis(axis, (Factor(size),))

    def along(
        self, layout: Layout, axes: Sequence[int], shape: Sequence[int], where: str
    ) -> Layout:
        """Mix all along some axes, which then have the extents of `shape`."""
        reason = f"{where} {UNKNOWN}"
        found = self.dropped(layout, layout.groups_in(axes), reason)
        for axis in axes:
            found = found.with_axis(axis, (Factor(shape[axis]),))
        return found

    def symmetric(self, layout: Layout, axes: Sequence[int], where: str) -> None:
        """Case 4; the layout stays."""
        self.count(layout, layout.groups_in(axes), f"{where} takes all channels together")
        for group in layout.groups_in(axes):
            digits = layout.digits(group)
            inside = [index for index, (axis, _) in enumerate(digits) if axis in axes]
            if inside == list(range(len(digits) - len(inside), len(digits))):
                length = math.prod(digits[index][1].size for index in inside)
                self.unions.split(layout.groups[group], length)
            else:
                reason = f"{where} takes channels of several groups together"
                self.unions.fix(layout.groups[group], reason)

    def reduced(self, layout: Layout, axes: Sequence[int], keep: bool, where: str) -> Layout:
        """Case 4: one number in place of all along some axes."""
        self.symmetric(layout, axes, where)
        for group in layout.groups_in(axes):
            layout = layout.without(group)
        for axis in axes:
            layout = layout.with_axis(axis, ())
        return layout if keep else without_axes(layout, axes)

    def product(self, one: Layout, two: Layout, where: str) -> Layout:
        """Case 5, for tensors of rank 2 and more."""
        rank = max(len(one.axes), len(two.axes))
        one, two = one.padded(rank), two.padded(rank)
        rows, inner = rank - 2, rank - 1
        for layout in (one, two):
            for axis in (rows, inner):
                self.symmetric(layout, [axis], where)
        mine, theirs = one.groups_in([inner]), two.groups_in([rows])
        if [_place(one, g, inner) for g in mine] == [_place(two, g, rows) for g in theirs]:
            for first, second in zip(mine, theirs, strict=True):
                self.unions.unite(one.groups[first], two.groups[second])
                one, two = one.without(first), two.without(second)
        reason = f"{where} sums up over channels in their order"
        one, two = self.dropped(one, mine, reason), self.dropped(two, theirs, reason)
        return self.join(one.with_axis(inner, ()), two.with_axis(rows, ()), where)

    def dropped(self, layout: Layout, groups: Iterable[int], reason: str) -> Layout:
        """Fix groups, and have places instead of them."""
        for group in groups:
            if group in layout.groups:
                self.unions.fix(layout.groups[group], reason)
                layout = layout.without(group)
        return layout


def without_axes(layout: Layout, axes: Sequence[int]) -> Layout:
    """The same without axes of one place."""
    return replace(layout, axes=tuple(a for i, a in enumerate(layout.axes) if i not in axes))


def _renamed(factor: Factor, names: Mapping[int, int]) -> Factor:
    group = factor.group
    return factor if group is None else replace(factor, group=names.get(group, group))


def _place(layout: Layout, group: int, core: int | None = None) -> tuple[object, ...]:
    """Where the digits of a group lie, by the factors around them; axis `core` has no number."""
    return tuple(
        (
            None if axis == core else axis,
            tuple(other.size for other in layout.axes[axis]),
            layout.axes[axis].index(factor),
        )
        for axis, factor in layout.digits(group)
    )
