"""A run with engines whose times are planted: what is measured, kept and said."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nmcompile.bench import group as group_module
from nmcompile.bench.engines import Array, Engine, Outputs, find_engine
from nmcompile.bench.matrix import expand, parse_spec
from nmcompile.bench.results import Case, Run
from nmcompile.bench.run import Outcome, Plan, run_plan
from nmcompile.bench.sources import OnnxSource, Source
from nmcompile.errors import DeclinedError
from nmcompile.machine.load import Load, LoadMeter
from tests.support.tiny_models import conv_onnx, conv_weight

Times = Callable[[int], float]
"""Seconds of an engine's run, by its number; may raise."""


class Clock:
    """Time that passes only while engines run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Planted(Engine):
    """An engine whose runs take what they are told, and compute nothing."""

    def __init__(self, times: Times, clock: Clock) -> None:
        self.version, self.inputs = "1", ["x"]
        self._times, self._clock, self._numbers = times, clock, itertools.count()
        self.closed = False

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        return [np.ones((1, 16, 6, 6), np.float32)]

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        seconds = self._times(next(self._numbers))
        self._clock.seconds += seconds
        return self.compute(inputs), seconds

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "net.onnx"
    onnx.save(conv_onnx(conv_weight()), path)
    return OnnxSource("net", "net.onnx", path)


class Bench:
    """Runs plans with planted engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
        self.clock, self.source, self.opened = Clock(), source, list[Planted]()
        self.times: dict[str, Times] = {}
        monkeypatch.setattr(group_module, "open_engine", self.open)
        monkeypatch.setattr(LoadMeter, "read", lambda meter, apart=0.0: Load())
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    def open(self, name: str, *_: Any) -> Engine:
        self.opened.append(Planted(self.times[name], self.clock))
        return self.opened[-1]

    def run(self, times: dict[str, Times], **more: Any) -> Outcome:
        self.times = times
        engines = [find_engine(name) for name in times]
        threads: Sequence[int] = more.pop("threads", [1])
        groups = expand(["net"], [parse_spec("as-is")], ["avx512"], threads, [None], engines)
        plan = Plan([self.source], groups, **{"rounds": 6, "warmup": 1, **more})
        outcome = run_plan(plan, now=self.clock, on_group=self.saved.append)
        assert all(engine.closed for engine in self.opened)
        return outcome

    @property
    def saved(self) -> list[Run]:
        return self.__dict__.setdefault("_saved", [])  # type: ignore[no-any-return]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, source: Source) -> Iterator[Bench]:
    yield Bench(monkeypatch, source)


def steady(seconds: float) -> Times:
    return lambda number: seconds


def cases(outcome: Outcome) -> dict[str, Case]:
    return {case.engine: case for case in outcome.run.cases}


def test_a_quiet_run_takes_the_rounds_that_were_asked_for(bench: Bench) -> None:
    outcome = bench.run({"onnxruntime": steady(0.030), "openvino-f32": steady(0.020)})
    found = cases(outcome)
    assert found["onnxruntime"].samples_ms == pytest.approx([30.0] * 6)
    assert found["openvino-f32"].samples_ms == pytest.approx([20.0] * 6)
    assert {case.noise for case in found.values()} == {"quiet"}
    assert {case.group for case in found.values()} == {"net, batch 1, 1 thread"}
    assert found["onnxruntime"].accuracy is not None
    assert outcome.run.complete and not outcome.interrupted and not outcome.failures
    (model,) = outcome.run.models
    assert (model.name, model.macs) == ("net", 16 * 16 * 9 * 36)


def test_a_noisy_run_is_longer_and_says_so(bench: Bench) -> None:
    def jumping(number: int) -> float:
        return 0.010 + 0.001 * (number * 7 % 11)

    outcome = bench.run({"onnxruntime": jumping, "openvino-f32": steady(0.020)})
    found = cases(outcome)["onnxruntime"]
    assert len(found.samples_ms) == 18
    assert found.noise == "noisy" and "after 18 rounds" in found.noise_reason
    assert outcome.run.complete


def test_an_engine_that_fails_is_named_and_the_others_stay(bench: Bench) -> None:
    def failing(number: int) -> float:
        if number > 8:
            raise RuntimeError("out of memory")
        return 0.01

    outcome = bench.run({"onnxruntime": failing, "openvino-f32": steady(0.020)})
    found = cases(outcome)
    assert found["onnxruntime"].samples_ms == []
    assert found["onnxruntime"].error == "RuntimeError: out of memory"
    assert len(found["openvino-f32"].samples_ms) == 6
    (failure,) = outcome.failures
    assert failure.what == "net, onnxruntime" and not failure.declined


def test_an_engine_that_declines_is_no_failure(bench: Bench) -> None:
    def slow(number: int) -> float:
        raise DeclinedError("too slow to be measured")

    outcome = bench.run({"tvm": slow, "openvino-f32": steady(0.020)})
    assert cases(outcome)["tvm"].error == "too slow to be measured"
    assert [failure.declined for failure in outcome.failures] == [True]


def test_the_time_is_shared_by_the_groups(bench: Bench) -> None:
    times = {"onnxruntime": steady(1.0)}
    outcome = bench.run(times, rounds=100, budget_s=60.0, threads=[1, 2], patience=0.0)
    rounds = [len(case.samples_ms) for case in outcome.run.cases]
    assert len(rounds) == 2 and all(8 <= count <= 14 for count in rounds)
    assert bench.clock.seconds <= 60.0
    assert not outcome.run.complete and not outcome.interrupted
    assert outcome.run.settings.budget_s == 60.0


def test_a_slow_engine_leaves_the_others_their_time(bench: Bench) -> None:
    times = {"onnxruntime": steady(0.1), "tvm": steady(4.0), "openvino-f32": steady(0.1)}
    outcome = bench.run(times, budget_s=60.0)
    found = cases(outcome)
    assert len(found["onnxruntime"].samples_ms) == len(found["openvino-f32"].samples_ms) == 6
    assert len(found["tvm"].samples_ms) == 1
    assert found["tvm"].noise == "noisy"
    assert "too slow for more than 1 rounds" in found["tvm"].noise_reason
    assert {found[name].noise for name in ("onnxruntime", "openvino-f32")} == {"quiet"}
    assert not outcome.run.complete and not outcome.failures
    assert bench.clock.seconds <= 60.0


def test_an_engine_too_slow_for_one_round_is_declined(bench: Bench) -> None:
    times = {"onnxruntime": steady(0.1), "tvm": steady(25.0)}
    outcome = bench.run(times, budget_s=200.0)
    found = cases(outcome)
    assert bench.clock.seconds <= 200.0
    assert len(found["onnxruntime"].samples_ms) == 6
    assert found["tvm"].samples_ms == [] and "raise --budget" in (found["tvm"].error or "")
    assert [failure.declined for failure in outcome.failures] == [True]


def test_groups_that_the_time_does_not_reach_are_left_out(bench: Bench) -> None:
    outcome = bench.run({"onnxruntime": steady(40.0)}, budget_s=30.0, threads=[1, 2])
    assert outcome.run.cases == [] and not outcome.run.complete


def test_an_interrupt_keeps_what_was_measured(bench: Bench) -> None:
    def interrupted(number: int) -> float:
        if len(bench.saved) == 1 and number > 9:
            raise KeyboardInterrupt
        return 0.01

    outcome = bench.run({"onnxruntime": interrupted}, threads=[1, 2], patience=0.0)
    assert [len(case.samples_ms) for case in outcome.run.cases] == [6, 3]
    assert outcome.interrupted and not outcome.run.complete
    assert len(bench.saved[0].cases) == 1


def test_cases_over_the_memory_budget_are_left_out(bench: Bench) -> None:
    outcome = bench.run({"onnxruntime": steady(0.01)}, memory_bytes=1 << 20)
    error = cases(outcome)["onnxruntime"].error or ""
    assert "expected at most 1 MB; raise --memory" in error
    assert outcome.failures[0].declined


def test_a_model_that_cannot_be_opened_fails_alone(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    broken = OnnxSource("broken", "broken.onnx", tmp_path / "broken.onnx")
    bench.times = {"onnxruntime": steady(0.01)}
    engines = [find_engine("onnxruntime")]
    groups = expand(["broken", "net"], [parse_spec("as-is")], [], [1], [None], engines)
    plan = Plan([broken, bench.source], groups, rounds=6, warmup=0)
    outcome = run_plan(plan, now=bench.clock)
    assert [case.model for case in outcome.run.cases if case.samples_ms] == ["net"]
    assert "broken.onnx" in outcome.failures[0].why
