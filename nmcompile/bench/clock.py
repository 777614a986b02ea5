"""The clock: engines take turns round by round, and only whole rounds count.

Where time is limited, a slow engine takes no more than an equal share of it, in fewer turns than
the others.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Key = TypeVar("Key", bound=Hashable)
SLOW = 2.0  # times the mean of the others' turns: where all are alike, all have the same rounds
SETTLE = 0.003  # seconds between engines: most threads spin for a moment after a run


@dataclass
class Timing(Generic[Key]):
    """What was measured.

    samples: milliseconds of every whole round, by engine; sample i of each is of round i.
    failed: what engines raised, by engine; they take no turns any more, and have no samples.
    spent: slow engines that have used up their share of the time, and have the first rounds only.
    stopped: why there are fewer rounds than asked for.
    """

    samples: dict[Key, list[float]]
    failed: dict[Key, Exception] = field(default_factory=dict)
    spent: list[Key] = field(default_factory=list)
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
        deadline: on the clock `now`; no round begins that is expected to end later. Where not all
            rounds fit, an engine that is SLOW times slower than the others and has taken an equal
            share of the time rests for the rest of the warm-up, takes one timed turn if there is
            time for it, and then no more.
        before_round: called before every round, the untimed ones too.
        on_round: called after it.
        now: monotonic seconds.
        settle: called between two engines.

    Returns:
        The whole rounds, also where the deadline, ctrl-C or an engine's failure came first.
    """
    timing: Timing[Key] = Timing({name: [] for name in turns})
    order = list(turns)
    shares = _Shares(order, deadline, now)
    try:
        for index in range(warmup + rounds):
            timed = index >= warmup
            resting = shares.spent(order, warmup + rounds - index)
            if timed:
                late = not shares.fit(order)
                resting = [name for name in resting if timing.samples[name] or late]
                timing.spent += resting
                order = [name for name in order if name not in resting]
            if not order:
                break
            turn = [name for name in order if name not in resting]
            if not shares.fit(turn):
                timing.stopped = "time"
                break
            before_round()
            first = index % len(turn)
            seconds: dict[Key, float] = {}
            for name in turn[first:] + turn[:first]:
                if len(turns) > 1:
                    settle()
                try:
                    with shares.charged(name):
                        turns[name]()
                        seconds[name] = turns[name]()
                except Exception as error:  # every engine has exceptions of its own
                    timing.failed[name] = error
                    timing.samples[name] = []
            order = [name for name in order if name not in timing.failed]
            if timed:
                for name in order:
                    timing.samples[name].append(seconds[name] * 1e3)
            on_round()
    except KeyboardInterrupt:
        timing.stopped = "interrupt"
        # One that came while a round was written down.
        whole = min((len(timing.samples[name]) for name in order), default=0)
        for name in order:
            del timing.samples[name][whole:]
    return timing


class _Shares(Generic[Key]):
    """What engines take of the time until a deadline."""

    def __init__(
        self, engines: Sequence[Key], deadline: float | None, now: Callable[[], float]
    ) -> None:
        self._deadline, self._now = math.inf if deadline is None else deadline, now
        self._share = (self._deadline - now()) / max(len(engines), 1)
        self._taken = dict.fromkeys(engines, 0.0)
        self._longest = dict.fromkeys(engines, 0.0)

    def fit(self, engines: Sequence[Key], rounds: int = 1) -> bool:
        """Whether rounds of some engines are expected to end in time."""
        expected = sum(self._longest[engine] for engine in engines)
        return self._now() + rounds * expected <= self._deadline

    def spent(self, engines: Sequence[Key], rounds: int) -> list[Key]:
        """The slow ones that have no time left for a turn, if not all rounds fit; never all."""
        if self.fit(engines, rounds):
            return []
        longest = {engine: self._longest[engine] for engine in engines}
        total, others = sum(longest.values()), len(longest) - 1
        return [
            engine
            for engine, turn in longest.items()
            if turn * others > SLOW * (total - turn) and self._taken[engine] + turn > self._share
        ]

    @contextlib.contextmanager
    def charged(self, engine: Key) -> Iterator[None]:
        """Time a turn."""
        begin = self._now()
        try:
            yield
        finally:
            turn = self._now() - begin
            self._taken[engine] += turn
            self._longest[engine] = max(self._longest[engine], turn)
