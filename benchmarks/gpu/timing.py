"""Time per call of several contenders on one GPU, measured in turns.

Each contender has as many sets of inputs, weights and outputs as fill the L2 cache three times, and
goes through them in one CUDA graph: every call finds its operands in memory, as large batches do,
and launching costs nothing. What cannot be captured is launched call by call.
Contenders take turns, round after round, each beginning with another one, so that clocks and
temperature fall on all alike. The result is the median over rounds of event times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.gpu.driver import Device

CACHES = 3  # what the sets of one contender fill
MIN_SETS, MAX_SETS = 2, 256
ROUNDS = 9
ROUND_MS = 2.0  # at least, of one contender in one round: a graph's start is 5 us


@dataclass(frozen=True)
class Replay:
    """Something to launch again and again.

    launch: enqueues `calls` calls on the device's stream. how: "graph", or "loop" where every call
        is launched by the host, whose time is then in the figure.
    """

    launch: Callable[[], None]
    calls: int
    how: str
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median and extremes over the rounds."""

    ms: float
    fastest: float
    slowest: float
    rounds: int
    how: str


def set_count(device: Device, nbytes: int) -> int:
    """Sets of buffers, of `nbytes` each, of which none is still in the cache at its next turn."""
    return max(MIN_SETS, min(MAX_SETS, -(-CACHES * device.l2_bytes // nbytes)))


def take_turns(
    device: Device,
    replays: Mapping[str, Replay],
    rounds: int = ROUNDS,
    round_ms: float = ROUND_MS,
    on_step: Callable[[str], None] = lambda name: None,
) -> dict[str, Timing]:
    """Time every replay; raises DriverError where a kernel fails."""
    start, end = device.event(), device.event()

    def timed(replay: Replay, repeats: int) -> float:
        device.record(start)
        for _ in range(repeats):
            replay.launch()
        device.record(end)
        return device.elapsed(start, end)

    repeats = {}
    for name, replay in replays.items():
        on_step(name)
        replay.launch()
        device.synchronize()
        once = max(timed(replay, 1), 1e-3)
        repeats[name] = max(1, min(1000, round(round_ms / once)))
    names = list(replays)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            on_step(name)
            total = timed(replays[name], repeats[name])
            found[name].append(total / (repeats[name] * replays[name].calls))
    return {
        name: Timing(statistics.median(ms), min(ms), max(ms), len(ms), replays[name].how)
        for name, ms in found.items()
    }
