"""Where the channels of a tensor lie: in one axis, or in several, as the heads of attention do.

Every axis is a product of factors, the outermost first. A factor is a number of places that keep
their order, or a digit of the channels of a group: of 64 channels as 4 heads of 16, the heads are
digit 0 and what is in them digit 1. Reshapes and transpositions move factors and never look into
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Segment:
    """`size` channels of a space, each `repeat` times in a row (flattened images)."""

    space: int
    size: int
    repeat: int = 1


Segments = tuple[Segment, ...]


@dataclass(frozen=True)
class Factor:
    """Places of an axis or, with a group, its digit number `digit`, of which 0 is the outermost."""

    size: int
    group: int | None = None
    digit: int = 0


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Layout:
    """A tensor.

    axes: without factors of size 1, and with neighbours merged where they are one.
    groups: the channels of each, in the order of the digits.
    why: what is to be said of a tensor without groups: why nothing in it can be reordered.
    """

    axes: tuple[Axis, ...]
    groups: Mapping[int, Segments]
    why: str = ""

    def digits(self, group: int) -> list[tuple[int, Factor]]:
        """Axis and factor of each digit of a group, in order."""
        found = [(i, f) for i, axis in enumerate(self.axes) for f in axis if f.group == group]
        return sorted(found, key=lambda entry: entry[1].digit)

    def groups_in(self, axes: Iterable[int]) -> list[int]:
        """The groups with a digit in one of the axes."""
        found = (f.group for axis in axes for f in self.axes[axis] if f.group is not None)
        return list(dict.fromkeys(found))

    def size(self, axis: int) -> int:
        """The extent of an axis."""
        return math.prod(factor.size for factor in self.axes[axis])

    def along(self, axis: int) -> Segments | None:
        """The segments of an axis that holds one group and all of it; None for other axes."""
        inside = [i for i, factor in enumerate(self.axes[axis]) if factor.group is not None]
        if len(inside) != 1:
            return None
        (place,) = inside
        group = self.axes[axis][place].group
        assert group is not None
        if len(self.digits(group)) > 1:
            return None
        outer = math.prod(factor.size for factor in self.axes[axis][:place])
        inner = math.prod(factor.size for factor in self.axes[axis][place + 1 :])
        return tuple(replace(s, repeat=inner) for s in self.groups[group]) * outer

    def padded(self, rank: int) -> Layout:
        """The same with axes of one place in front, as operands are broadcast."""
        return replace(self, axes=((),) * (rank - len(self.axes)) + self.axes)

    def without(self, group: int) -> Layout:
        """The same with places instead of a group."""
        return made(
            [[Factor(f.size) if f.group == group else f for f in axis] for axis in self.axes],
            self.groups,
            self.why,
        )

    def with_axis(self, axis: int, factors: Axis) -> Layout:
        """The same with other factors in one axis."""
        return made([*self.axes[:axis], factors, *self.axes[axis + 1 :]], self.groups, self.why)

    def transposed(self, order: Sequence[int]) -> Layout:
        """Axis i of the result is axis order[i]."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """The same elements in another shape; None where an axis would begin inside a factor."""
        rest = [factor for axis in self.axes for factor in axis]
        axes: list[list[Factor]] = []
        for size in shape:
            axes.append([])
            need = size
            while need > 1 and rest:
                factor = rest.pop(0)
                if factor.size > need and factor.size % need == 0:
                    if factor.group is not None:
                        later = _later(factor)
                        axes = [list(map(later, axis)) for axis in axes]
                        rest = list(map(later, rest))
                        rest.insert(0, replace(factor, digit=factor.digit + 1))
                    else:
                        rest.insert(0, factor)
                    rest[0] = replace(rest[0], size=factor.size // need)
                    factor = replace(factor, size=need)
                if need % factor.size:
                    return None
                axes[-1].append(factor)
                need //= factor.size
            if need != 1:
                return None
        return None if rest else made(axes, self.groups, self.why)


def _later(split: Factor) -> Callable[[Factor], Factor]:
    """Renumber the digits behind one that is split."""

    def later(factor: Factor) -> Factor:
        behind = factor.group == split.group and factor.digit > split.digit
        return replace(factor, digit=factor.digit + 1) if behind else factor

    return later


def plain(shape: Sequence[int], why: str) -> Layout:
    """A tensor in which nothing can be reordered."""
    return made([[Factor(size)] for size in shape], {}, why)


def made(axes: Sequence[Sequence[Factor]], groups: Mapping[int, Segments], why: str = "") -> Layout:
    """A layout of any factors: what is one factor becomes one, groups that are gone are left out.

    Of two groups in one place the caller keeps one.
    """
    merged = tuple(tuple(_merged(axis)) for axis in axes)
    found = Layout(merged, {}, why)
    kept: dict[int, Segments] = {}
    numbers: dict[tuple[int, int], int] = {}
    for group in found.groups_in(range(len(merged))):
        kept[group] = groups[group]
        for index, (_, factor) in enumerate(found.digits(group)):
            numbers[group, factor.digit] = index
    renumbered = tuple(
        tuple(f if f.group is None else replace(f, digit=numbers[f.group, f.digit]) for f in axis)
        for axis in merged
    )
    return Layout(renumbered, kept, why)


def _merged(axis: Iterable[Factor]) -> Iterator[Factor]:
    last: Factor | None = None
    ends = 0  # the digit that `last` ends with
    for factor in axis:
        if factor.size == 1:
            continue
        one = last is not None and factor.group == last.group
        if one and (factor.group is None or factor.digit == ends + 1):
            assert last is not None
            last = replace(last, size=last.size * factor.size)
        else:
            if last is not None:
                yield last
            last = factor
        ends = factor.digit
    if last is not None:
        yield last
