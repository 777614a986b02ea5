"""Spaces that are found to be one, or to be several: what shares an order, and what is fixed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nmcompile.passes.permutation.layouts import Segment, Segments


class Unions:
    """Union-find over spaces that can be split: of one that is united with another, both are."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._sizes: list[int] = []
        self._parts: dict[int, tuple[int, int]] = {}  # of roots that are split
        self._reasons: dict[int, str] = {}
        self._counted: dict[int, str] = {}

    def new(self, size: int, reason: str | None = None) -> Segment:
        """A space of its own; `reason` fixes it."""
        self._parent.append(len(self._parent))
        self._sizes.append(size)
        if reason is not None:
            self._reasons[self._parent[-1]] = reason
        return Segment(self._parent[-1], size)

    def spaces(self) -> dict[int, tuple[int, str | None, str | None]]:
        """Size of every space, why it is fixed, and why none of its channels can be left out."""
        return {
            index: (size, self._reasons.get(index), self._counted.get(index))
            for index, size in enumerate(self._sizes)
            if self._parent[index] == index and index not in self._parts
        }

    def resolve(self, segments: Iterable[Segment]) -> Segments:
        """The same channels by the spaces that are left."""
        found: list[Segment] = []
        for segment in segments:
            for leaf in self._leaves(segment.space):
                found.append(replace(segment, space=leaf, size=self._sizes[leaf]))
        return tuple(found)

    def fix(self, segments: Iterable[Segment], reason: str) -> None:
        """Give the order of these channels a reason to stay."""
        for segment in segments:
            for leaf in self._leaves(segment.space):
                self._reasons.setdefault(leaf, reason)

    def count(self, segments: Iterable[Segment], reason: str) -> None:
        """Give these channels a reason to be all there, in whatever order."""
        for segment in segments:
            for leaf in self._leaves(segment.space):
                self._counted.setdefault(leaf, reason)

    def cut(self, segments: Sequence[Segment], start: int, stop: int) -> Segments:
        """The channels from `start` to `stop`; what they share with others is split there."""
        for place in (start, stop):
            self._split_at(segments, place)
        found, offset = [], 0
        for segment in self.resolve(segments):
            if start <= offset and offset + segment.size <= stop:
                found.append(segment)
            offset += segment.size
        return tuple(found)

    def split(self, segments: Sequence[Segment], length: int) -> None:
        """Split into runs of `length` channels, each with an order of its own."""
        total = sum(segment.size for segment in segments)
        for place in range(length, total, length):
            self._split_at(segments, place)

    def unite(self, one: Sequence[Segment], two: Sequence[Segment]) -> None:
        """Channels that share one order, as many in both."""
        a, b = self.resolve(one), self.resolve(two)
        while [s.size for s in a] != [s.size for s in b]:
            for first, second in ((one, b), (two, a)):
                offset = 0
                for segment in second:
                    self._split_at(first, offset)
                    offset += segment.size
            a, b = self.resolve(one), self.resolve(two)
        for first_space, second_space in zip(a, b, strict=True):
            self._link(self._root(first_space.space), self._root(second_space.space))

    def _split_at(self, segments: Sequence[Segment], place: int) -> None:
        offset = 0
        for segment in self.resolve(segments):
            inside = place - offset
            if 0 < inside < segment.size:
                space = self._root(segment.space)
                parts = [self.new(size) for size in (inside, segment.size - inside)]
                self._parts[space] = (parts[0].space, parts[1].space)
                for reasons in (self._reasons, self._counted):
                    reason = reasons.pop(space, None)
                    if reason is not None:
                        reasons.update({part.space: reason for part in parts})
                return
            offset += segment.size

    def _link(self, one: int, two: int) -> None:
        first, second = sorted((one, two))
        if first != second:
            self._parent[second] = first
            for reasons in (self._reasons, self._counted):
                reason = reasons.pop(second, None)
                if reason is not None:
                    reasons.setdefault(first, reason)

    def _root(self, space: int) -> int:
        while self._parent[space] != space:
            self._parent[space] = self._parent[self._parent[space]]
            space = self._parent[space]
        return space

    def _leaves(self, space: int) -> list[int]:
        found, waiting = [], [space]
        while waiting:
            root = self._root(waiting.pop())
            if root in self._parts:
                waiting += reversed(self._parts[root])
            else:
                found.append(root)
        return found
