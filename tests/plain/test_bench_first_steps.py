"""`nmc bench` as newcomers meet it: what is missing, too little time, and noise."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nmcompile.bench.report import summary
from nmcompile.bench.report.data import find_entries, find_sites
from nmcompile.bench.results import Case
from nmcompile.cli import app
from tests.plain.test_bench_results import make_case, make_run
from tests.support.report_runs import change


def bench(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, words)], prog_name="nmc")


@pytest.mark.parametrize("missing", ["jinja2", "vl_convert", "msgspec"])
def test_a_report_without_its_extra_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    done = bench("report", tmp_path / "run.json", "-o", tmp_path / "r.html")
    assert done.exit_code == 1
    said = f"error: nmc bench report needs {missing}, not installed here: pip install "
    assert done.stderr == f"{said}'nmcompile[bench]'\n"


@pytest.mark.parametrize(
    "words", [["--rounds", "0", "m.onnx"], [], ["m.onnx", "--patterns", "3by5"], ["--nothing"]]
)
def test_usage_errors_name_commands_that_exist(words: list[str]) -> None:
    done = bench(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: nmc bench [OPTIONS]")
    assert "Try 'nmc bench --help' for help." in done.stderr


def test_a_command_that_is_misspelled_is_no_model(tmp_path: Path) -> None:
    done = bench("reprot", "run.json", "-o", "report.html")
    assert done.exit_code == 2
    assert "No such command or model 'reprot'. Did you mean 'report'?" in done.stderr


@pytest.mark.parametrize(
    ("budget", "words", "cases"),
    [
        ("0.5", ["--threads", "1"], "1 case;"),
        ("5s", ["--threads", "1", "--patterns", "dense,2:4", "--batch", "1,2,4"], "6 cases;"),
        ("3s", ["--patterns", "dense,1x16@0.5", "--against", "onnxruntime,torch"], "4 cases;"),
    ],
)
def test_a_budget_that_is_too_small_for_one_round_is_refused_at_once(
    budget: str, words: list[str], cases: str, sparse_onnx: Path, tmp_path: Path
) -> None:
    done = bench(sparse_onnx, "--budget", budget, *words, "-o", tmp_path / "run.json")
    assert done.exit_code == 2
    assert "are over before the first round" in done.stderr and cases in done.stderr
    assert list(tmp_path.iterdir()) == []


def case(ms: float, pattern: str, noise: str) -> Case:
    made = make_case("nmcompile", [ms] * 6)
    density = 1.0 if pattern == "dense" else 0.5
    return change(made, pattern=pattern, density=density, noise=noise, noise_reason="")


def finding(*cases: Case) -> str:
    return summary.finding(find_entries(find_sites([make_run(*cases)])))


def test_the_headline_is_the_best_of_the_quiet_cases() -> None:
    base = case(8.0, "dense", "quiet")
    text = finding(base, case(4.0, "2:4", "quiet"), case(1.0, "1:4", "noisy"))
    assert "2:4" in text and "2.00x" in text


@pytest.mark.parametrize("noise", ["noisy", "busy"])
def test_without_a_quiet_case_there_is_no_headline(noise: str) -> None:
    text = finding(case(8.0, "dense", "quiet"), case(1.0, "1:4", noise))
    assert text.startswith("None of 1 speed-up is told apart from noise")
    assert "8.00" not in text
