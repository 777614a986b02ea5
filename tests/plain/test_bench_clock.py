"""The clock: who runs when, and what is kept where it ends early."""

import os
from collections.abc import Callable

import pytest

from nmcompile.bench.clock import interleave
from nmcompile.bench.pinning import on_cores
from nmcompile.bench.remaining import TimeLeft

Turn = Callable[[], float]


class Clock:
    """Time that only passes when somebody lets it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def quietly() -> None:
    """Settle at once."""


def engine(calls: list[str], name: str, seconds: float) -> Turn:
    def turn() -> float:
        calls.append(name)
        return seconds

    return turn


def test_engines_take_turns_and_keep_their_own_clock() -> None:
    calls: list[str] = []
    turns = {"a": engine(calls, "a", 1.0), "b": engine(calls, "b", 2.0)}
    timing = interleave(turns, 3, warmup=1, settle=quietly)
    assert timing.samples == {"a": [1e3] * 3, "b": [2e3] * 3}
    assert (timing.rounds, timing.stopped) == (3, "")
    assert calls == [*"aabb", *"bbaa"] * 2


def test_hooks_surround_every_round() -> None:
    said: list[str] = []
    interleave(
        {"a": engine(said, "a", 1.0)},
        1,
        warmup=1,
        before_round=lambda: said.append("before"),
        on_round=lambda: said.append("after"),
        settle=quietly,
    )
    assert said == ["before", "a", "a", "after"] * 2


def test_no_round_begins_that_the_time_does_not_allow() -> None:
    clock = Clock()

    def turn() -> float:
        clock.seconds += 1.0
        return 1.0

    timing = interleave({"a": turn}, 100, warmup=1, deadline=11.0, now=clock, settle=quietly)
    assert (timing.rounds, timing.stopped) == (4, "time")
    assert clock.seconds == 10.0


def passing(clock: Clock, seconds: float) -> Turn:
    def turn() -> float:
        clock.seconds += seconds
        return seconds

    return turn


@pytest.mark.parametrize(
    ("slow", "rounds"),
    [
        (1.0, 10),  # all rounds fit: slow or not
        (3.1, 2),  # the warm-up, and two more of 6 seconds in a third of 77
        (12.0, 1),  # rests in the second round of the warm-up, has one timed turn
        (30.0, 0),  # another turn would take all that is left
    ],
)
def test_a_slow_engine_takes_its_share_of_the_time_only(slow: float, rounds: int) -> None:
    clock = Clock()
    turns = {"a": passing(clock, 0.1), "slow": passing(clock, slow), "b": passing(clock, 0.1)}
    timing = interleave(turns, 10, warmup=2, deadline=77.0, now=clock, settle=quietly)
    assert len(timing.samples["a"]) == len(timing.samples["b"]) == 10
    assert len(timing.samples["slow"]) == rounds
    assert timing.spent == (["slow"] if rounds < 10 else [])
    assert not timing.stopped and clock.seconds <= 77.0


def test_engines_that_are_about_as_fast_end_together() -> None:
    clock = Clock()
    turns = {"a": passing(clock, 1.0), "b": passing(clock, 1.9)}
    timing = interleave(turns, 100, warmup=1, deadline=60.0, now=clock, settle=quietly)
    assert (timing.stopped, timing.spent) == ("time", [])
    assert len(timing.samples["a"]) == len(timing.samples["b"]) == 9


def test_an_interrupt_keeps_whole_rounds() -> None:
    calls: list[str] = []

    def interrupted() -> float:
        if len(calls) > 20:
            raise KeyboardInterrupt
        return engine(calls, "b", 2.0)()

    turns = {"a": engine(calls, "a", 1.0), "b": interrupted}
    timing = interleave(turns, 100, warmup=0, settle=quietly)
    assert timing.stopped == "interrupt"
    assert len(timing.samples["a"]) == len(timing.samples["b"]) == 5


def test_an_engine_that_fails_leaves_the_others_alone() -> None:
    calls: list[str] = []

    def failing() -> float:
        if len(calls) > 6:
            raise RuntimeError("out of memory")
        return 1.0

    turns = {"a": engine(calls, "a", 1.0), "b": failing}
    timing = interleave(turns, 6, warmup=0, settle=quietly)
    assert timing.samples == {"a": [1e3] * 6, "b": []}
    assert str(timing.failed["b"]) == "out of memory"


def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1, threads=True) as cores:
        assert os.sched_getaffinity(0) == set(cores) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_where_cores_cannot_be_chosen_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cores: object) -> None:
        raise PermissionError

    before = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with on_cores(1) as cores:
        assert cores == [] and os.sched_getaffinity(0) == before


def test_the_time_left_is_known_once_every_kind_of_work_has_begun() -> None:
    left = TimeLeft({"prepare": 2, "round": 4})
    assert str(left) == "" and left.share == 0.0
    left.add("prepare", 1, 100.0)
    assert left.seconds is None
    left.add("round", 1, 20.0)
    assert left.seconds == 100.0 + 3 * 20.0
    assert str(left) == ", about 3 min left"
    left.add("prepare", 1, 100.0)
    assert str(left) == ", about 60 s left"
