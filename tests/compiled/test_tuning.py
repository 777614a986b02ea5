"""The tuning database and the tuner, as a user meets them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import nmcompile
from nmcompile import runtime
from nmcompile.cli import app
from nmcompile.errors import ArtifactError, InputError
from nmcompile.kernels.catalog import Choice, choose, find_row
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Conv2d, Epilogue, Linear
from nmcompile.machine import trial
from nmcompile.sparsity import Detection, parse_pattern, project
from nmcompile.tuning import tuner
from nmcompile.tuning.database import Tuned, TuningDatabase, plain_config
from nmcompile.tuning.tuner import Layer, LocalMeasurer, tune
from tests.support.examples import is_thorough
from tests.support.kernel_runner import reference, relative_error, run_kernel, tolerance_of

CONV = Conv2d(1, 32, 9, 9, 24, (3, 3), padding=(1, 1, 1, 1))


def make_problem(pattern: str, density: float | None = None, conv: Conv2d = CONV) -> Problem:
    shape = (conv.out_channels, conv.in_channels, *conv.kernel)
    weight = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    spec = parse_pattern(pattern)
    if pattern != "dense":
        weight = project(weight, spec, density)
    kept = float(np.count_nonzero(weight)) / weight.size
    return Problem(conv, Epilogue(), weight, None, Detection(spec, (spec,), kept))


def tuned_choice(database: TuningDatabase, problem: Problem) -> Choice:
    tune([Layer("layer", "conv2d", problem)], "avx512", database, LocalMeasurer())
    return database.choose("conv2d", "avx512", problem)


def sparse_model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 1)]
    with torch.no_grad():
        for layer in layers:
            weight = np.asarray(layer.weight.detach())
            layer.weight.copy_(torch.from_numpy(project(weight, parse_pattern("2:4"))))
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).eval()


@pytest.fixture(autouse=True)
def little_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "CANDIDATES", 2)
    monkeypatch.setattr(tuner, "OTHERS", 1)
    monkeypatch.setattr(trial, "BUDGET", 0.05)


@pytest.mark.parametrize(("pattern", "density"), [("2:4", None), ("1x8", 0.5), ("dense", None)])
def test_configs_agree_with_float64(pattern: str, density: float | None) -> None:
    problem = make_problem(pattern, density)
    kernel = choose("conv2d", "avx512", problem).kernel
    x = np.random.default_rng(1).standard_normal((1, 32, 9, 9)).astype(np.float32)
    expected = reference(problem, x, None)
    configs = kernel.configs(problem)
    assert len(configs) > 3 and len({c.config for c in configs}) == len(configs)
    for candidate in configs[:: max(1, len(configs) // (6 if is_thorough() else 3))]:
        found = run_kernel(kernel, problem, x, None, candidate.config)
        assert relative_error(found, expected) < tolerance_of(kernel), candidate


def test_tuner_measures_once_and_the_file_brings_it_back(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    problem = make_problem("2:4")
    first = tuned_choice(TuningDatabase(path), problem)
    entry = TuningDatabase(path).find(problem)
    assert entry is not None and 0 < entry.ms <= entry.default_ms
    assert first.kernel.name == entry.kernel and plain_config(first.config) == entry.config
    before = path.read_bytes()
    again = tuned_choice(TuningDatabase(path), problem)
    assert (again.kernel, again.config) == (first.kernel, first.config)
    assert path.read_bytes() == before


def test_products_are_measured_skipping_zeros_and_not() -> None:
    conv = make_problem("2:4", conv=Conv2d(1, 64, 1, 1, 48, (1, 1)))
    assert conv.weight is not None
    problem = replace(conv, spec=Linear((2, 30), 64, 48), weight=conv.weight[:, :, 0, 0])
    database, measured = TuningDatabase(), dict[str, float]()

    class Recorder(LocalMeasurer):
        def measure(self, contests: Any, target: str) -> Any:
            for contest, found in super().measure(contests, target):
                names = [kernel.name for kernel, _ in contest.candidates]
                measured.update(zip(names, found.differences, strict=True))
                yield contest, found

    tune([Layer("layer", "linear", problem)], "avx512", database, Recorder())
    assert {"linear_f32_nm__avx512", "linear_f32_dense__avx512"} <= set(measured)
    assert max(measured.values()) < 1e-5
    entry = database.find(problem)
    assert entry is not None
    assert database.choose("linear", "avx512", problem).kernel.name == entry.kernel


def test_entry_decides_kernel_and_tiles() -> None:
    problem = make_problem("2:4")
    kernel = choose("conv2d", "avx512", problem).kernel
    last = kernel.configs(problem)[-1].config
    database = TuningDatabase()
    database.add(problem, Tuned(kernel.name, plain_config(last), 1.0, 2.0))
    assert database.choose("conv2d", "avx512", problem).config == last
    dense = "conv2d_f32_dense__avx512"
    row = find_row(dense)
    assert row is not None
    database.add(problem, Tuned(dense, plain_config(row.configs(problem)[0].config), 1.0, 2.0))
    choice = database.choose("conv2d", "avx512", problem)
    assert choice.kernel.name == dense and "measured slower" in choice.reason


def test_report_names_the_kernel_that_was_measured_fastest(tmp_path: Path) -> None:
    path, x = tmp_path / "tuning.json", torch.randn(1, 8, 12, 12)
    options: dict[str, Any] = {"output": tmp_path / "m.nmc", "example_inputs": (x,)}
    measured = nmcompile.Tuning(path, measure=True)
    nmcompile.compile(sparse_model(), tuning=measured, **options)
    text = path.read_text()
    document = json.loads(text)
    (entries,) = document["cpus"].values()
    for conv, name in (
        (Conv2d(1, 8, 12, 12, 16, (3, 3), padding=(1, 1, 1, 1)), "conv2d_f32_dense__avx512"),
        (Conv2d(1, 16, 12, 12, 16, (1, 1)), "conv2d_f32_nm__avx512"),
    ):
        entry = next(entries[key] for key in entries if f"kernel={conv.kernel}" in key)
        row = find_row(name)
        assert row is not None
        best = row.configs(make_problem("2:4", conv=conv))[0]
        entry |= {"kernel": name, "config": plain_config(best.config)}
    path.write_text(json.dumps(document))
    report = nmcompile.compile(sparse_model(), tuning=nmcompile.Tuning(path), **options).report
    assert report.layers[0].kernel == "conv2d_f32_dense__avx512"
    assert [layer.sparse for layer in report.layers] == [False, True]
    assert "measured slower" in report.layers[0].reason


def test_entry_of_other_shape_or_density_is_not_used() -> None:
    problem = make_problem("2:4")
    database = TuningDatabase()
    kernel = choose("conv2d", "avx512", problem).kernel
    database.add(
        problem, Tuned(kernel.name, plain_config(kernel.configs(problem)[1].config), 1.0, 2.0)
    )
    assert database.find(make_problem("1:4")) is None
    assert database.find(make_problem("2:4", conv=Conv2d(1, 32, 8, 9, 24, (3, 3)))) is None


def test_tiles_that_the_kernel_does_not_propose_are_ignored() -> None:
    problem = make_problem("2:4")
    kernel = choose("conv2d", "avx512", problem).kernel
    config = plain_config(kernel.configs(problem)[0].config) | {"outputs": 7}
    database = TuningDatabase()
    database.add(problem, Tuned(kernel.name, config, 1.0, 2.0))
    assert database.choose("conv2d", "avx512", problem).config is None


def entry_text(ms: str = "1.0", config: str = "{}") -> str:
    entry = f'{{"kernel": "k", "config": {config}, "ms": {ms}, "default_ms": 2.0}}'
    return f'{{"version": 1, "cpus": {{"cpu": {{"problem": {entry}}}}}}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2, "cpus": {}}',
        '{"version": 1, "cpus": {"x": {"y": {}}}}',
        "[" * 100_000,
        *(entry_text(ms) for ms in ("NaN", "Infinity", "1e999", "0", "-1.5", "true", '"1"')),
        entry_text(config="[1]"),
    ],
)
def test_damaged_database_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"tuning\.json: expected a tuning database"):
        TuningDatabase(path)


def test_a_database_like_the_damaged_ones_is_read(tmp_path: Path) -> None:
    (tmp_path / "tuning.json").write_text(entry_text())
    assert TuningDatabase(tmp_path / "tuning.json", "cpu").machines == ["cpu"]


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path, barrier = tmp_path / "tuning.json", threading.Barrier(3)

    def work(cpu: str, kernel: str) -> None:
        database = TuningDatabase(path, cpu)
        barrier.wait()
        for batch in range(1, 21):
            problem = Problem(replace(CONV, batch=batch))
            database.add(problem, Tuned(kernel, {}, 1.0, 2.0))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ("one", "two", "two"), "abc"))
    cpus = json.loads(path.read_text())["cpus"]
    assert {cpu: len(entries) for cpu, entries in cpus.items()} == {"one": 20, "two": 20}
    assert list(tmp_path.iterdir()) == [path]


def test_compile_with_tuning_runs_and_agrees(tmp_path: Path) -> None:
    model, x = sparse_model(), torch.randn(1, 8, 12, 12)
    path = tmp_path / "tuning.json"
    for tuned in (True, False):
        tuning = nmcompile.Tuning(path, measure=tuned)
        result = nmcompile.compile(
            model, output=tmp_path / "m.nmc", example_inputs=(x,), tuning=tuning
        )
        assert len(result.tuning) == 2
        assert all(0 < layer.ms <= layer.default_ms for layer in result.tuning)
        with runtime.load(tmp_path / "m.nmc") as session:
            found = next(iter(session.run(x.numpy()).values()))
        with torch.no_grad():
            assert relative_error(found, model(x).numpy()) < 1e-5


def test_cli_shows_the_gain_and_needs_an_existing_database(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    torch.onnx.export(sparse_model(), (torch.randn(1, 8, 12, 12),), file, dynamo=True)
    onnx.checker.check_model(file)
    arguments = ["compile", str(file), "-o", str(tmp_path / "m.nmc")]
    database = str(tmp_path / "tuning.json")
    missing = CliRunner().invoke(app, [*arguments, "--tuning-db", database])
    assert missing.exit_code == 1 and "does not exist" in missing.output
    done = CliRunner().invoke(app, [*arguments, "--tune", "--tuning-db", database])
    assert done.exit_code == 0, done.output
    assert "tuned layers:" in done.output and "measured best" in done.output
    assert json.loads(Path(database).read_text())["version"] == 1
    shown = CliRunner().invoke(app, [*arguments, "--tuning-db", database, "--json"])
    assert len(json.loads(shown.stdout)["tuning"]) == 2


def test_unwritable_database_is_a_clear_error(tmp_path: Path) -> None:
    database = TuningDatabase(tmp_path / "missing" / "tuning.json")
    with pytest.raises(ArtifactError, match=r"cannot write .*tuning\.json"):
        tuned_choice(database, make_problem("2:4"))
