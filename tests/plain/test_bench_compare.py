"""Which changes between two runs are called real."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from nmcompile.bench.compare import THRESHOLD, Comparison, compare
from nmcompile.bench.results import Case, Run
from tests.plain.test_bench_results import make_case, make_run

SEEDS = range(20)
ROUNDS = 30
TIMES = {"nmcompile": 10.0, "onnxruntime": 30.0, "openvino-f32": 28.0}


def run(
    seed: int, *, ours: float = 1.0, machine: float = 1.0, engines: Sequence[str] = tuple(TIMES)
) -> Run:
    """A run of one group: rounds on a machine that drifts, and engines with noise of their own.

    ours: factor of nmcompile's time. machine: factor of all times.
    """
    random = np.random.default_rng(seed)
    drift = machine * np.exp(np.cumsum(random.normal(0, 0.02, ROUNDS)))
    cases = []
    for engine in engines:
        factor = ours if engine == "nmcompile" else 1.0
        # What a run has of its own: where its memory lies, for example.
        luck = np.exp(random.normal(0, 0.005))
        noise = np.exp(random.normal(0, 0.03, ROUNDS))
        times = TIMES[engine] * factor * luck * drift * noise
        cases.append(make_case(engine, times.tolist()))
    return make_run(*cases)


def ours(found: Comparison) -> str:
    (change,) = [c for c in found.changes if c.after.engine == "nmcompile"]
    return change.verdict


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_down_of_a_tenth_is_always_a_regression(seed: int) -> None:
    found = compare(run(seed), run(seed + 100, ours=1.1))
    (regression,) = found.regressions(THRESHOLD)
    assert regression.after.engine == "nmcompile"
    assert regression.against == ("onnxruntime", "openvino-f32")
    assert 1.05 < regression.ratio.value < 1.15


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slower_day_of_the_machine_is_none(seed: int) -> None:
    found = compare(run(seed), run(seed + 100, machine=1.3))
    assert ours(found) == "within noise"
    assert not found.regressions(THRESHOLD)


def test_a_gain_is_faster_and_no_regression() -> None:
    found = compare(run(1), run(2, ours=0.8))
    assert ours(found) == "faster" and not found.regressions(THRESHOLD)


def test_below_the_threshold_a_real_change_is_no_regression() -> None:
    found = compare(run(1), run(2, ours=1.3))
    assert ours(found) == "slower"
    assert found.regressions(0.2) and not found.regressions(0.5)


def test_without_others_the_medians_themselves_are_compared() -> None:
    alone = ("nmcompile",)
    found = compare(run(1, engines=alone), run(2, engines=alone, machine=1.5))
    assert found.changes[0].against == ()
    assert found.regressions(THRESHOLD)


def test_another_version_of_an_engine_is_no_reference() -> None:
    def newer(case: Case) -> Case:
        if case.engine != "onnxruntime":
            return case
        return msgspec.structs.replace(case, engine_version="2")

    after = run(2)
    after = msgspec.structs.replace(after, cases=[newer(case) for case in after.cases])
    found = compare(run(1), after)
    assert found.changes[0].against == ("openvino-f32",)


def test_what_only_one_of_the_others_shows_is_its_own() -> None:
    after = run(2)
    slow = after.cases[1]
    slow = msgspec.structs.replace(slow, samples_ms=[0.5 * ms for ms in slow.samples_ms])
    after = msgspec.structs.replace(after, cases=[after.cases[0], slow, after.cases[2]])
    assert ours(compare(run(1), after)) == "within noise"


def test_a_busy_machine_takes_more_to_convince() -> None:
    def busy(run: Run) -> Run:
        cases = [msgspec.structs.replace(case, noise="busy") for case in run.cases]
        return msgspec.structs.replace(run, cases=cases)

    assert ours(compare(run(1), run(2, ours=1.1))) == "slower"
    assert ours(compare(run(1), busy(run(2, ours=1.1)))) == "within noise"
    assert ours(compare(busy(run(1)), run(2, ours=1.3))) == "slower"


def test_what_only_one_run_has_is_listed() -> None:
    found = compare(run(1), run(2, engines=("nmcompile", "onnxruntime")))
    assert [case.engine for case in found.only_before] == ["openvino-f32"]
    assert found.only_after == []
    assert len(found.changes) == 2


def test_other_machines_versions_and_models_are_warned_of() -> None:
    before, after = run(1), run(2)
    after = msgspec.structs.replace(
        after,
        complete=False,
        machine=msgspec.structs.replace(after.machine, cpu="another CPU"),
        versions={"onnxruntime": "2"},
        models=[msgspec.structs.replace(after.models[0], digest="11")],
    )
    said = "\n".join(compare(before, after).warnings)
    assert "differ in cpu: a CPU, another CPU" in said
    assert "versions of onnxruntime differ: none, 2" in said
    assert "the second run is not complete" in said
    assert "the model net is another one" in said
    assert compare(before, before).warnings == []
