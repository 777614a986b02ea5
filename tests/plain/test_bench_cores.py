"""Waiting for cores that share a cache."""

import os
from collections.abc import Iterator

import pytest

from nmcompile.bench import cores
from nmcompile.bench.cores import Cores, handover_ns

pytestmark = pytest.mark.alone  # it is about threads and cores


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no other")
def test_a_cache_line_is_handed_over_in_nanoseconds() -> None:
    assert 1 < handover_ns() < 100_000


def test_rounds_wait_until_the_cores_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Iterator[float] = iter([300.0, 300.0, 30.0, 30.0])
    monkeypatch.setattr(cores, "handover_ns", lambda: next(looks))
    monkeypatch.setattr(cores, "FRESH", -1.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    waiting = Cores(patience=60.0)
    waiting.wait()
    waiting.wait()
    assert (waiting.rounds, waiting.apart) == (2, 0)
    assert waiting.patience == 60.0 - 2 * cores.PAUSE


def test_rounds_go_on_apart_when_the_patience_is_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "handover_ns", lambda: 300.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    waiting = Cores(patience=3 * cores.PAUSE)
    for _ in range(2):
        waiting.wait()
    assert (waiting.rounds, waiting.apart) == (2, 2)


def test_rounds_do_not_wait_where_nobody_can_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "compiler", lambda: None)
    waiting = Cores(patience=60.0)
    waiting.wait()
    assert (waiting.rounds, waiting.patience) == (0, 60.0)


def test_a_look_holds_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def look() -> float:
        looks.append(300.0)
        return 300.0

    monkeypatch.setattr(cores, "handover_ns", look)
    monkeypatch.setattr(cores, "FRESH", 3600.0)
    waiting = Cores(patience=0.0)
    for _ in range(3):
        waiting.wait()
    assert (waiting.rounds, waiting.apart, len(looks)) == (3, 3, 1)
