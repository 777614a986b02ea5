"""Measurements where several shapes read one weight: of all shapes, and what is chosen by them."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import nmcompile
from nmcompile import runtime
from nmcompile.kernels.catalog import Choice, OpKind, choose
from nmcompile.kernels.problem import Problem
from nmcompile.machine.trial import Measured
from nmcompile.passes.lowering.sharing import Counted, Ranking, SharedChooser
from nmcompile.runtime.format import read_artifact
from nmcompile.tuning import setup
from nmcompile.tuning.database import Tuned, TuningDatabase, plain_config
from nmcompile.tuning.tuner import Contest
from tests.compiled.test_tuning import CONV, make_problem, sparse_model
from tests.support.kernel_runner import relative_error

OP: OpKind = "conv2d"
TARGET = "avx512"
SHAPES = [{"input": (1, 8, 12, 12)}, {"input": (3, 8, 12, 12)}]


def packed(problem: Problem, choice: Choice) -> list[bytes]:
    lowered = choice.kernel.lower(problem, choice.config)
    return [np.asarray(array).tobytes() for array in lowered.arrays.values()]


def shared(ranking: Ranking, problems: Sequence[Problem]) -> list[bytes]:
    """The packed weight of all problems, as chosen for them together."""
    chooser = SharedChooser(TARGET, [(OP, problem) for problem in problems], ranking)
    first, *others = (packed(problem, chooser(OP, TARGET, problem)) for problem in problems)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("measured", [(0,), (1,), (0, 1)])
def test_what_was_measured_fastest_decides_for_all_shapes(measured: tuple[int, ...]) -> None:
    first = make_problem("2:4")
    problems = [first, replace(first, spec=replace(CONV, batch=4))]
    counted = shared(Counted(), problems)
    kernel = choose(OP, TARGET, first).kernel
    known = [each.config for each in kernel.configs(problems[1])]
    fastest = next(
        Choice(kernel, config=each.config)
        for each in kernel.configs(first)
        if each.config in known and packed(first, Choice(kernel, config=each.config)) != counted
    )
    database = TuningDatabase()
    for index in measured:
        entry = Tuned(kernel.name, plain_config(fastest.config), 1.0, 1e6)
        database.add(problems[index], entry)
    assert shared(database, problems) == packed(first, fastest)


class LastIsFastest:
    """A measurer that is made up; `measured` are the batches of what it was given."""

    measured: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.notes: list[str] = []

    def measure(
        self, contests: Iterable[Contest], target: str
    ) -> Generator[tuple[Contest, Measured]]:
        for contest in contests:
            self.measured.append(contest.layer.problem.as_conv.batch)
            count = len(contest.candidates)
            yield contest, Measured([[1 / (1 + index) for index in range(count)]], [0.0] * count)


def test_layers_of_all_shapes_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "LocalMeasurer", LastIsFastest)
    model, tuning = sparse_model(), nmcompile.Tuning(tmp_path / "tuning.json", measure=True)
    options: dict[str, Any] = {"output": tmp_path / "m.nmc", "shapes": SHAPES, "tuning": tuning}
    done = nmcompile.compile(model, **options)
    assert sorted(LastIsFastest.measured) == [1, 1, 3, 3]
    said = " ".join(note for note in done.report.notes if "not the measured best" in note)
    assert all(name in {layer.layer for layer in done.tuning} or name in said for name in "02")
    assert nmcompile.compile(model, **options).digest == done.digest
    assert len(LastIsFastest.measured) == 4
    params = read_artifact(done.path).manifest.params
    weights = sum(4 * weight.numel() for weight in model.parameters())
    assert sum(spec.nbytes for spec in params) < 1.5 * weights
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    nmcompile.update(done.path, model)
    with runtime.load(done.path, threads=1) as session:
        for batch in (1, 3, 4):
            x = torch.randn(batch, 8, 12, 12)
            (found,) = session.run(x.numpy()).values()
            with torch.no_grad():
                assert relative_error(found, model(x).numpy()) < 1e-5
