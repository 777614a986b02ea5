"""`nmc bench` as a user calls it; what it refuses as wrong usage is in test_cli_app.py."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from nmcompile.bench.engines.ours import Nmcompile
from nmcompile.bench.results import Run, read_run, write_run
from nmcompile.cli import app
from nmcompile.cli.bench.plan import default_output, parse_duration, parse_size
from nmcompile.cli.bench.plan import parse_counts as counts
from nmcompile.cli.bench.table import all_rows
from tests.plain.test_bench_compare import run as planted
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, example

avx512 = pytest.mark.isa("avx512f")
QUICK = ("--rounds", "2", "--warmup", "0", "--threads", "1", "--patience", "0")


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *(str(argument) for argument in arguments)])


def bench_json(*arguments: str | Path) -> Any:
    """Run with --json; everything on stdout must be one document."""
    done = bench(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


def read(path: Path) -> Run:
    run = read_run(path)
    assert all(case.samples_ms or case.error for case in run.cases)
    return run


# Measuring


@avx512
def test_peers_are_measured_in_the_same_sitting(
    sparse_artifact: Path, sparse_onnx: Path, output: Path
) -> None:
    options = ("--against", "onnxruntime,openvino", "--model", sparse_onnx, "--layers")
    document = bench_json(sparse_artifact, *options, *QUICK, "-o", output)
    rows = {row["engine"]: row for row in document["cases"]}
    assert list(rows) == ["nmcompile", "onnxruntime", "openvino-f32"]
    fastest = min(("onnxruntime", "openvino-f32"), key=lambda name: rows[name]["median_ms"])
    run = read(output)
    times = {case.engine: case.samples_ms for case in run.cases}
    ratios = np.array(times[fastest]) / np.array(times["nmcompile"])
    assert rows["nmcompile"]["over"] == fastest
    assert rows["nmcompile"]["speedup"] == pytest.approx(np.exp(np.median(np.log(ratios))))
    assert rows["nmcompile"]["difference"] < 1e-4
    assert all(row["version"] for row in rows.values())
    # Longer where it was noisy.
    assert {row["rounds"] for row in rows.values()} in ({2}, {4}, {6})
    ours = run.cases[0]
    assert (ours.density, ours.target, ours.batch, ours.threads) == (0.5, "avx512", 1, 1)
    assert ours.artifact is not None and ours.artifact.nbytes == sparse_artifact.stat().st_size
    assert {case.group for case in run.cases} == {ours.group}


@avx512
def test_a_matrix_of_a_torch_factory(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo.py").write_text(
        "import torch\n"
        "def small():\n"
        "    print('noise of the factory')\n"
        "    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3), torch.nn.Flatten()]\n"
        "    return torch.nn.Sequential(*layers, torch.nn.Linear(16 * 16, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = ("--shape", "input=1,3,8,8", "--against", "onnxruntime,torch")
    matrix = ("--patterns", "dense,2:4", "--batch", "1,2", "--label", "first")
    done = bench("zoo:small", *options, *matrix, *QUICK, "-o", output)
    assert done.exit_code == 0, done.output
    assert "speed-up" in done.stdout and str(output) in done.stdout
    run = read(output)
    assert run.complete and run.label == "first"
    found = [(c.batch, c.engine, c.pattern, c.density) for c in run.cases]
    assert found == [
        (batch, *rest)
        for batch in (1, 2)
        for rest in (
            ("nmcompile", "dense", 1.0),
            ("nmcompile", "2:4", 0.5),
            ("onnxruntime", "dense", 1.0),
            ("torch", "dense", 1.0),
        )
    ]
    for case in run.cases:
        assert case.accuracy is not None
        assert case.accuracy.max_error < 1e-4 and case.accuracy.same_top1 == 1.0
        assert case.accuracy.top1 is None
        assert bool(case.layers) == (case.engine == "nmcompile")


@pytest.mark.parametrize(
    ("target", "int8_roof", "bf16_roof"),
    [
        pytest.param("avx512_bf16", "vnni", "bf16", marks=pytest.mark.isa("avx512_bf16")),
        pytest.param("avx512_amx", "amx_int8", "amx_bf16", marks=pytest.mark.isa("amx_bf16")),
    ],
)
def test_both_precisions_of_a_target(
    target: str, int8_roof: str, bf16_roof: str, sparse_onnx: Path, output: Path
) -> None:
    options = ("--targets", f"{target},{target}:bf16", "--against", "openvino-bf16")
    done = bench(sparse_onnx, *options, *QUICK, "-o", output)
    assert done.exit_code == 0, done.output
    run = read(output)
    found = [(case.engine, case.target, case.dtype) for case in run.cases]
    assert found == [
        ("nmcompile", target, "int8"),
        ("nmcompile", target, "bfloat16"),
        ("openvino-bf16", "", "bfloat16"),
    ]
    for case in run.cases:
        assert case.accuracy is not None and case.accuracy.max_error < 2e-2
    assert run.roofs is not None
    known = getattr(run.roofs, int8_roof), getattr(run.roofs, bf16_roof)
    assert known[0] > known[1] > 0
    roofs = [{row.roof for row in case.layers if row.roof_share} for case in run.cases[:2]]
    assert int8_roof in roofs[0] and bf16_roof in roofs[1]


@pytest.mark.isa("avx512_vnni")
def test_both_precisions_stand_side_by_side(sparse_onnx: Path, output: Path) -> None:
    options = ("--targets", "avx512,avx512_vnni", "--against", "onnxruntime,onnxruntime-int8")
    done = bench(sparse_onnx, *options, *QUICK, "-o", output)
    assert done.exit_code == 0, done.output
    assert "int8 models were quantised by nmcompile on random inputs" in done.stderr
    run = read(output)
    assert run.settings.calibration == "random inputs"
    found = [(case.engine, case.target, case.dtype) for case in run.cases]
    assert found == [
        ("nmcompile", "avx512", "float32"),
        ("nmcompile", "avx512_vnni", "int8"),
        ("onnxruntime", "", "float32"),
        ("onnxruntime-int8", "", "int8"),
    ]
    named = {"float32": "onnxruntime", "int8": "onnxruntime, not optimised"}
    for case in run.cases:
        assert case.accuracy is not None and case.accuracy.reference == named[case.dtype]
        assert case.accuracy.max_error < 1e-2 and case.accuracy.same_top1 == 1.0
    assert run.roofs is not None and run.roofs.vnni is not None
    assert run.roofs.vnni > run.roofs.fma
    for case in run.cases[:2]:
        rated = [row for row in case.layers if row.roof_share is not None]
        assert rated
        assert all((row.roof == "vnni") == (case.dtype == "int8") for row in rated)
    rows = {(row["engine"], row["dtype"]): row for row in all_rows(run)}
    assert rows["nmcompile", "int8"]["over"] == "onnxruntime-int8"
    assert rows["nmcompile", "float32"]["over"] == "onnxruntime"


@avx512
def test_layers_are_held_against_the_roofs(
    sparse_artifact: Path, tmp_path: Path, output: Path
) -> None:
    picture = tmp_path / "layers.png"
    options = ("--layers", "--plot", picture, "-o", output)
    document = bench_json(sparse_artifact, *QUICK, *options)
    roofs, (case,) = document["roofs"], document["cases"]
    assert 0 < roofs["load"] <= 1.2 * roofs["fma"]
    wide = next(row for row in case["layers"] if "wide" in row["layer"])
    assert wide["dense_equivalent_gflops"] == pytest.approx(2 * 16**4 * 9 / wide["ms"] * 1e-6)
    assert wide["nonzero_gflops"] == pytest.approx(wide["dense_equivalent_gflops"] / 2)
    convolutions = [row for row in case["layers"] if row["symbol"].startswith("conv2d")]
    assert convolutions
    for row in convolutions:
        assert row["roof"] == ("load" if "_nm_" in row["symbol"] else "fma")
        assert row["roof_share"] > 0 and row["lost_ms"] < row["ms"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = bench(sparse_artifact, *QUICK, "--layers", "-o", output).stdout
    for words in ("of the roof", "furthest from its roof", "non-zero GFLOP/s"):
        assert words in text


@avx512
def test_top_1_stands_beside_latency(
    sparse_artifact: Path, sparse_onnx: Path, tmp_path: Path, output: Path
) -> None:
    x = example((6, *SHAPE[1:])).numpy()
    done = bench(sparse_artifact, *QUICK, "-o", output, "--data", tmp_path / "d.npz")
    assert done.exit_code == 1 and "d.npz" in done.stderr
    session = Nmcompile(sparse_artifact, {}, 1)
    y = np.array([session.compute({"x": x[i : i + 1]})[0].argmax() for i in range(6)])
    y[0] = (y[0] + 1) % 10
    np.savez(tmp_path / "d.npz", x=x, y=y)
    options = ("--model", sparse_onnx, "--data", tmp_path / "d.npz", "-o", output)
    (row,) = bench_json(sparse_artifact, *QUICK, *options)["cases"]
    assert (row["top1"], row["same_top1"]) == (pytest.approx(5 / 6), 1.0)
    np.savez(tmp_path / "d.npz", x=x, y=y + 10)
    done = bench(sparse_artifact, *QUICK, *options)
    assert done.exit_code == 1 and "expected labels from 0 to 9" in done.stderr


@avx512
def test_an_interrupt_keeps_the_file(
    sparse_artifact: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))
    real = Nmcompile.compute

    def interrupted(engine: Nmcompile, inputs: Any) -> Any:
        if next(calls) > 20:
            raise KeyboardInterrupt
        return real(engine, inputs)

    monkeypatch.setattr(Nmcompile, "compute", interrupted)
    done = bench(sparse_artifact, "--rounds", "500", "--threads", "1", "-o", output)
    assert done.exit_code == 130
    assert f"interrupted; what was measured is in {output}" in done.stderr
    run = read(output)
    assert not run.complete and 5 <= len(run.cases[0].samples_ms) <= 10


# What goes wrong


def test_a_missing_engine_names_its_extra_and_the_others_are_kept(
    dense_onnx: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    options = ("--against", "onnxruntime,openvino", "-o", output)
    done = bench(dense_onnx, *QUICK, *options)
    assert done.exit_code == 1
    assert "openvino-f32 is not installed here" in done.stderr
    assert "pip install 'nmcompile[bench]'" in done.stderr
    errors = {case.engine: case.error for case in read(output).cases}
    assert errors["onnxruntime"] is None and "not installed" in (errors["openvino-f32"] or "")


@avx512
def test_a_batch_that_does_not_fit_fails_alone(tmp_path: Path, output: Path) -> None:
    onnx.save(conv_onnx(conv_weight()), tmp_path / "m.onnx")
    done = bench(tmp_path / "m.onnx", *QUICK, "--batch", "1,2", "-o", output)
    assert done.exit_code == 1
    assert "fixes the batch of its input x at 1" in done.stderr
    assert [bool(case.samples_ms) for case in read(output).cases] == [True, False]


def test_another_model_is_found_out(sparse_artifact: Path, tmp_path: Path, output: Path) -> None:
    onnx.save(conv_onnx(conv_weight()), tmp_path / "other.onnx")
    options = ("--against", "onnxruntime", "--model", tmp_path / "other.onnx", "-o", output)
    done = bench(sparse_artifact, *QUICK, *options)
    assert done.exit_code == 1
    assert "name the model that the artifact was made from" in done.stderr


@avx512
def test_a_plot_that_cannot_be_written_is_an_error(sparse_artifact: Path, output: Path) -> None:
    options = ("--plot", sparse_artifact / "layers.png", "-o", output)
    done = bench(sparse_artifact, *QUICK, *options)
    assert done.exit_code == 1
    assert f"cannot write {sparse_artifact}/layers.png" in done.stderr
    assert not output.exists()  # found before anything was measured


def test_a_model_that_is_not_there_is_named(tmp_path: Path, output: Path) -> None:
    done = bench(tmp_path / "missing.nmc", *QUICK, "-o", output)
    assert done.exit_code == 1 and "missing.nmc" in done.stderr
    assert not output.exists()


@pytest.mark.parametrize("name", ["", "file/run.json"])
def test_a_result_that_cannot_be_written_is_refused_at_once(
    name: str, dense_onnx: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    done = bench(dense_onnx, "-o", tmp_path / name)
    assert done.exit_code == 1 and "cannot write" in done.stderr


def test_an_earlier_result_is_not_replaced_unasked(tmp_path: Path) -> None:
    for name in ("nmc-bench.json", "nmc-bench-2.json", "nmc-bench-3.json"):
        path = default_output(tmp_path)
        assert path.name == name
        path.touch()


def test_sizes_times_and_counts_are_read() -> None:
    assert [parse_size(text) for text in ("8G", "1.5MB", "700")] == [8 * 10**9, 1500000, 700]
    assert [parse_duration(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    assert counts("2,1, 2", "--batch") == [2, 1]


# Comparing


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    runs = {"a": planted(1), "same": planted(2), "slow": planted(3, ours=1.1)}
    paths = {name: tmp_path / f"{name}.json" for name in runs}
    for name, run in runs.items():
        write_run(run, paths[name])
    return paths


def test_compare_is_quiet_about_noise(results: dict[str, Path]) -> None:
    done = bench("compare", results["a"], results["same"])
    assert done.exit_code == 0, done.output
    assert "0 real changes, 3 cases within noise" in done.stdout
    assert done.stderr == ""


def test_compare_exits_with_1_on_a_regression(results: dict[str, Path]) -> None:
    done = bench("compare", results["a"], results["slow"])
    assert done.exit_code == 1
    assert "REGRESSION" in done.stdout and "onnxruntime, openvino-f32" in done.stdout
    assert "1 regressions of more than 5.0%" in done.stderr
    assert bench("compare", results["a"], results["slow"], "--threshold", "30%").exit_code == 0
    assert bench("compare", results["slow"], results["a"]).exit_code == 0


def test_compare_speaks_json(results: dict[str, Path]) -> None:
    done = bench("compare", results["a"], results["slow"], "--json")
    document = json.loads(done.stdout)
    assert (done.exit_code, document["regressions"], document["threshold"]) == (1, 1, 0.05)
    (change,) = [row for row in document["changes"] if row["regression"]]
    assert change["engine"] == "nmcompile" and change["ratio_low"] > 1.0
    assert change["after_ms"] > change["before_ms"]


def test_compare_warns_of_other_machines(results: dict[str, Path]) -> None:
    run = read_run(results["same"])
    other = msgspec.structs.replace(run.machine, cpu="another CPU")
    write_run(msgspec.structs.replace(run, machine=other), results["same"])
    done = bench("compare", results["a"], results["same"])
    assert "warning: the machines differ in cpu" in done.stderr


def test_compare_refuses_other_files_as_wrong_usage(
    results: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "b.json").write_text("{}")
    done = bench("compare", results["a"], tmp_path / "b.json")
    assert done.exit_code == 2 and "is no result of nmc bench" in done.stderr


def test_help_shows_the_options_and_the_other_commands() -> None:
    done = bench("--help")
    assert done.exit_code == 0
    for words in ("Usage: nmc bench", "--patterns", "--budget", "compare", "Say which cases"):
        assert words in done.stdout.replace("Usage: root bench", "Usage: nmc bench")
