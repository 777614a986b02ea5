"""The clock: engines take turns round by round, and only whole rounds count."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
SETTLE = 0.003  # seconds between engines: most threads spin for a moment after a run


@dataclass
class Timing(Generic[Key]):
    """What was measured.

    samples: milliseconds of every whole round, by engine; sample i of each is of round i.
    failed: what engines raised, by engine; they take no turns any more, and have no samples.
    stopped: why there are fewer rounds than asked for.
    """

    samples: dict[Key, list[float]]
    failed: dict[Key, Exception] = field(default_factory=dict)
    stopped: Literal["", "time", "interrupt"] = ""

    @property
    def rounds(self) -> int:
        """How many there are."""
        return max((len(values) for values in self.samples.values()), default=0)


def interleave(
    turns: Mapping[Key, Callable[[], float]],
    rounds: int,
    *,
    warmup: int = 3,
    deadline: float | None = None,
    before_round: Callable[[], None] = lambda: None,
    on_round: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.monotonic,
    settle: Callable[[], None] = lambda: time.sleep(SETTLE),
) -> Timing[Key]:
    """Time all engines round by round, so that a slow moment of the machine hits all of them.

    Before each timed run comes an untimed one of the same engine: it refills the caches, and
    outlasts the spinning threads of the engine before. Every round begins with another engine.

    Args:
        turns: run the engine once and return its seconds.
        rounds: to keep.
        warmup: rounds before them that are not kept.
        deadline: on the clock `now`; no round begins that is expected to end later.
        before_round: called before every round, the untimed ones too.
        on_round: called after it.
        now: monotonic seconds.
        settle: called between two engines.

    Returns:
        The whole rounds, also where the deadline, ctrl-C or an engine's failure came first.
    """
    timing: Timing[Key] = Timing({name: [] for name in turns})
    order = list(turns)
    longest = 0.0
    try:
        for index in range(warmup + rounds):
            if not order:
                break
            begin = now()
            if deadline is not None and begin + longest > deadline:
                timing.stopped = "time"
                break
            before_round()
            first = index % len(order)
            seconds: dict[Key, float] = {}
            for name in order[first:] + order[:first]:
                if len(turns) > 1:
                    settle()
                try:
                    turns[name]()
                    seconds[name] = turns[name]()
                except Exception as error:  # every engine has exceptions of its own
                    timing.failed[name] = error
                    timing.samples[name] = []
            order = [name for name in order if name not in timing.failed]
            if index >= warmup:
                for name in order:
                    timing.samples[name].append(seconds[name] * 1e3)
            longest = max(longest, now() - begin)
            on_round()
    except KeyboardInterrupt:
        timing.stopped = "interrupt"
        # One that came while a round was written down.
        whole = min((len(timing.samples[name]) for name in order), default=0)
        for name in order:
            del timing.samples[name][whole:]
    return timing
