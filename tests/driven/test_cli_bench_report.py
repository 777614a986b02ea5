"""`nmc bench report`: files in, a page out, and errors that say what to do."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nmcompile.bench.results import write_run
from nmcompile.cli import app
from tests.support.report_runs import make_run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    write_run(make_run("desk", ("net",), (1,), (1,)), path)
    return path


def report(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "report", *map(str, words)])


def test_runs_become_a_page(run_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = report(run_file, run_file, "-o", page, "--title", "Two runs")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{page}: 20 cases of 2 runs, ")
    assert "<h1>Two runs</h1>" in page.read_text()


def test_json_for_programs(run_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = report(run_file, "-o", page, "--json")
    assert json.loads(done.stdout) == {
        "report": str(page),
        "runs": 1,
        "cases": 10,
        "bytes": page.stat().st_size,
    }


def test_wrong_usage_exits_with_2(run_file: Path) -> None:
    assert report("-o", "report.html").exit_code == 2
    assert report(run_file).exit_code == 2


@pytest.mark.parametrize(
    ("file", "output", "said"),
    [
        ("*.jsn", "report.html", "no file matches"),
        ("missing.json", "report.html", "cannot read"),
        ("other.json", "report.html", "expected format 'nmcompile-bench', found None"),
        ("run.json", "run.json", "would be overwritten: name another output"),
        ("run.json", "run.json/report.html", "cannot write"),
    ],
)
def test_what_fails_is_said_in_one_line(
    file: str, output: str, said: str, run_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.json").write_text("{}")
    before = run_file.read_bytes()
    done = report(tmp_path / file, "-o", tmp_path / output)
    assert done.exit_code == 1
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()
    assert run_file.read_bytes() == before


@pytest.mark.parametrize("library", ["jinja2", "vl_convert"])
def test_a_missing_library_is_named(
    library: str, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmcompile.pages import page

    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    done = report(run_file, "-o", tmp_path / "report.html")
    assert done.exit_code == 1
    assert "pip install 'nmcompile[bench]'" in done.stderr
