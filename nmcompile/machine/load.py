"""Who else was on the cores while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
STOLEN = 0.05  # share of the time that a virtual machine's host took away
OTHERS = 0.10  # share of the cores' time that other processes used
APART = 0.2  # share of the rounds on cores without a common cache


@dataclass(frozen=True)
class Load:
    """What was on the cores during a measurement, as shares of their time.

    apart: share of the rounds whose cores had no cache in common.
    """

    stolen: float = 0.0
    others: float = 0.0
    apart: float = 0.0

    @property
    def reason(self) -> str:
        """Why the machine was too busy; "" where it was not."""
        if self.stolen > STOLEN:
            return f"the host of this virtual machine took {self.stolen:.0%} of the cores' time"
        if self.others > OTHERS:
            return f"other processes used {self.others:.0%} of the cores' time"
        if self.apart > APART:
            return f"in {self.apart:.0%} of the rounds the cores had no cache in common"
        return ""


class LoadMeter:
    """Measures the load of some cores from its making to `read`."""

    def __init__(self, cores: Iterable[int]) -> None:
        """Begin; without a readable /proc/stat nothing is ever found."""
        self._cores = {f"cpu{core}" for core in cores}
        self._before, self._used, self._begin = self._jiffies(), self._own(), time.monotonic()

    def read(self, apart: float = 0.0) -> Load:
        """The load since the beginning."""
        busy, stolen = (a - b for a, b in zip(self._jiffies(), self._before, strict=True))
        tick = os.sysconf("SC_CLK_TCK")
        span = max((time.monotonic() - self._begin) * len(self._cores), 1e-9)
        # Our own time may have been spent on other cores: then it is none of theirs.
        others = busy / tick - (self._own() - self._used)
        return Load(max(stolen / tick / span, 0.0), max(others / span, 0.0), apart)

    def _jiffies(self) -> tuple[float, float]:
        """Clock ticks that the cores were busy, and that were stolen from them."""
        busy = stolen = 0.0
        try:
            lines = STAT.read_text().splitlines()
        except OSError:
            return 0.0, 0.0
        for line in lines:
            name, *fields = line.split()
            if name in self._cores and len(fields) >= 8:
                user, nice, system, _, _, irq, soft, steal = map(float, fields[:8])
                busy += user + nice + system + irq + soft
                stolen += steal
        return busy, stolen

    def _own(self) -> float:
        """Seconds of this process and its children, live or ended."""
        return sum(os.times()[:4]) + _children_seconds(os.getpid())


def _children_seconds(parent: int) -> float:
    """Seconds that the live descendants of a process have used."""
    seconds = 0.0
    for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(word) for word in tasks.read_text().split()]
        except OSError:
            continue
        for child in children:
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            seconds += _children_seconds(child)
    return seconds
