"""Where lines run beside a list of operators: a lane for each tensor, from maker to last reader.

Execution order is an order in which every tensor is made before it is read, so rows in that order
need lines downwards only. Lanes are given out like registers: an operator takes the leftmost one
that is free once what it reads last is gone, so that the trunk of a network stays on the left and
branches stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The lines of one row.

    lane: of the operator. above: lanes of tensors that enter the row from above, below: of those
    that leave it. reads: those of `above` that the operator reads. writes: whether its own lane
    goes on below it.
    """

    lane: int
    above: tuple[int, ...]
    below: tuple[int, ...]
    reads: tuple[int, ...]
    writes: bool

    @property
    def passing(self) -> tuple[int, ...]:
        """Lanes of tensors that come from above and are still needed below."""
        kept = set(self.below) - ({self.lane} if self.writes else set())
        return tuple(lane for lane in self.above if lane in kept)


def lay_out(reads: Sequence[Sequence[int]]) -> list[Row]:
    """Lanes of operators.

    Args:
        reads: for each operator, those before it whose tensors it reads.

    Raises:
        ValueError: one reads itself or one behind it.
    """
    last = list[int | None]([None] * len(reads))
    for row, sources in enumerate(reads):
        for source in sources:
            if source >= row:
                raise ValueError(f"row {row} reads row {source}, which is not above it")
            last[source] = row
    lanes: dict[int, int] = {}  # of tensors that are still to be read, by their maker
    rows = []
    for row, sources in enumerate(reads):
        above = tuple(sorted(lanes.values()))
        read = tuple(sorted({lanes[source] for source in sources}))
        for source in set(sources):
            if last[source] == row:
                del lanes[source]
        taken = set(lanes.values())
        lane = next(place for place in range(len(taken) + 1) if place not in taken)
        if last[row] is not None:
            lanes[row] = lane
        rows.append(
            Row(lane, above, tuple(sorted(lanes.values())), read, writes=last[row] is not None)
        )
    return rows
