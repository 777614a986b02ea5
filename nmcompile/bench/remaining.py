"""How long a run will go on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping


class TimeLeft:
    """Estimates the time left from what work of each kind has taken so far.

    Args:
        work: how many units of each kind there are.
    """

    def __init__(self, work: Mapping[str, float]) -> None:
        self._open = dict(work)
        self._done: defaultdict[str, float] = defaultdict(float)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, kind: str, units: float, seconds: float) -> None:
        """Some units are done, in so many seconds."""
        self._open[kind] = max(self._open.get(kind, 0.0) - units, 0.0)
        self._done[kind] += units
        self._seconds[kind] += seconds

    def drop(self, kind: str, units: float) -> None:
        """Some units will not be done."""
        self._open[kind] = max(self._open.get(kind, 0.0) - units, 0.0)

    @property
    def share(self) -> float:
        """Of all units, how many are done."""
        done = sum(self._done.values())
        return done / max(done + sum(self._open.values()), 1e-9)

    @property
    def seconds(self) -> float | None:
        """The estimate; None as long as nothing of some kind has been done."""
        if any(units and not self._done[kind] for kind, units in self._open.items()):
            return None
        return sum(
            units * self._seconds[kind] / self._done[kind]
            for kind, units in self._open.items()
            if units
        )

    def __str__(self) -> str:
        seconds = self.seconds
        if seconds is None:
            return ""
        if seconds < 90:
            return f", about {seconds:.0f} s left"
        return f", about {seconds / 60:.0f} min left"
