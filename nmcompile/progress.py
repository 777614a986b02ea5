"""Who is told what is going on, and how long each stage takes."""

from __future__ import annotations

import time
from typing import Protocol


class Progress(Protocol):
    """Told what is going on: a stage, and how much of it is done (0 of 0 where unknown)."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report."""


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Report nothing."""


class Stages:
    """Passes reports on, and times stages: one lasts until the next begins, "" ends the last.

    seconds: by stage, in order.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._name, self._begin = progress, "", 0.0
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report."""
        now = time.perf_counter()
        if stage != self._name:
            if self._name:
                self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._begin
            self._name, self._begin = stage, now
        if stage:
            self._progress(stage, done, total)
