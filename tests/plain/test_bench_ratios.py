"""Intervals of ratios, and what they say about noise, on samples whose truth is known."""

import numpy as np
import pytest

from nmcompile.bench.noise import FEW, judge
from nmcompile.bench.ratios import Interval, median_interval, ratio_interval
from nmcompile.machine.load import Load, LoadMeter

TRIALS = 120
ROUNDS = 30
RATIO = 1.7


def paired(random: np.random.Generator, slow: float) -> tuple[list[float], list[float]]:
    """Two engines in the same rounds: drift that both bear, noise of each, and some outliers."""
    drift = np.exp(np.cumsum(random.normal(0, slow, ROUNDS)))
    times = []
    for base in (RATIO, 1.0):
        noise = np.exp(random.normal(0, 0.02, ROUNDS))
        outliers = np.where(random.random(ROUNDS) < 0.05, 1.5, 1.0)
        times.append(list(base * drift * noise * outliers))
    return times[0], times[1]


@pytest.mark.parametrize("slow", [0.0, 0.03], ids=["steady", "drifting"])
def test_intervals_hold_the_truth_as_often_as_they_say(slow: float) -> None:
    random = np.random.default_rng(1)
    found = [ratio_interval(*paired(random, slow), seed=trial) for trial in range(TRIALS)]
    covered = np.mean([interval.low <= RATIO <= interval.high for interval in found])
    assert 0.9 <= covered <= 1.0
    assert np.median([interval.width for interval in found]) < 0.05


def test_what_both_had_to_bear_cancels_out() -> None:
    random = np.random.default_rng(2)
    above, below = paired(random, 0.05)
    alone = median_interval(above)
    found = ratio_interval(above, below)
    assert found.width < 0.75 * alone.width
    assert found.low <= RATIO <= found.high


def test_intervals_are_the_same_every_time_and_hold_their_estimate() -> None:
    above, below = paired(np.random.default_rng(3), 0.0)
    interval = ratio_interval(above, below)
    assert interval == ratio_interval(above, below)
    assert interval.low <= interval.value <= interval.high
    alone = median_interval([2.0])
    assert [alone.low, alone.value, alone.high] == pytest.approx([2.0] * 3)


def test_samples_have_to_be_pairs() -> None:
    with pytest.raises(ValueError, match="expected pairs, found 2 and 1"):
        ratio_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="found none"):
        median_interval([])


@pytest.mark.parametrize(
    ("width", "rounds", "load", "verdict", "reason"),
    [
        (0.02, 30, Load(), "quiet", ""),
        (0.20, 30, Load(), "noisy", "interval is 20.0% of the value wide"),
        (0.02, FEW - 1, Load(), "noisy", "rounds are too few"),
        (0.02, 30, Load(others=0.5), "busy", "other processes used 50%"),
        (0.02, 30, Load(stolen=0.3), "busy", "took 30% of the cores' time"),
        (0.20, 30, Load(apart=0.9), "busy", "in 90% of the rounds"),
    ],
)
def test_verdicts_say_why(width: float, rounds: int, load: Load, verdict: str, reason: str) -> None:
    interval = Interval(1.0, 1 - width / 2, 1 + width / 2)
    found = judge(interval, [1.0] * rounds, load)
    assert found[0] == verdict and reason in found[1]


def test_without_samples_there_is_nothing_to_judge() -> None:
    assert judge(None, [], Load(others=1.0)) == ("quiet", "")


def test_our_own_work_is_not_that_of_others(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmcompile.machine import load as load_meter

    stat = tmp_path_factory.mktemp("proc") / "stat"
    monkeypatch.setattr(load_meter, "STAT", stat)
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    used = iter([0.0, 4.0])
    monkeypatch.setattr(LoadMeter, "_own", lambda self: next(used))
    stat.write_text("cpu 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\n")
    meter = LoadMeter([1])
    stat.write_text("cpu 0 0 0 0 0 0 0 0\ncpu0 900 0 0 0 0 0 0 0\ncpu1 500 0 200 0 0 0 0 100\n")
    load = meter.read()
    assert [load.others, load.stolen] == pytest.approx([0.3, 0.1])
