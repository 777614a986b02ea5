"""The command line as a whole: usage, exit codes, debugging, start-up."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nmcompile
from nmcompile.cli import app
from tests.support.tiny_models import example

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["compile"],
        ["compile", "m.onnx"],
        ["compile", "m.onnx", "-o", "m.nmc", "--shape", "1,3,224,224"],
        ["compile", "m.onnx", "-o", "m.nmc", "--shape", "x=1,three"],
        ["compile", "m.onnx", "-o", "m.nmc", "--shape", "x=1,0,8,8"],
        ["compile", "m.onnx", "-o", "m.nmc", "--density", "1.5"],
        ["enforce", "m.onnx", "-o", "s.onnx"],
        ["bundle", "m.nmc"],
        ["bundle", "-o", "out"],
        ["run", "m.nmc", "-i", "x="],
        ["run", "m.nmc", "-i", "x.npy", "-i", "y.npy", "-o", "out"],
        ["run", "m.nmc", "-i", "x.npy", "-o", "out", "--threads", "0"],
        ["inspect", "m.nmc", "--pattern", "2:4"],
        ["bench", "m.nmc", "--against", "onnxruntime"],
        ["bench", "m.nmc", "--against", "fastruntime", "--model", "m.onnx"],
        ["bench", "m.nmc", "--repeats", "0"],
        ["bench"],
        ["bench", "m.onnx", "--patterns", "3by5"],
        ["bench", "m.onnx", "--patterns", "1x16"],
        ["bench", "m.onnx", "--targets", "abacus"],
        ["bench", "m.onnx", "--threads", "0"],
        ["bench", "m.onnx", "--threads", "4096"],
        ["bench", "m.onnx", "--batch", "two"],
        ["bench", "m.onnx", "--budget", "soon"],
        ["bench", "m.onnx", "--memory", "much"],
        ["bench", "m.onnx", "--model", "other.onnx"],
        ["bench", "m.onnx", "--weights", "best.pth"],
        ["bench", "m.nmc", "--patterns", "2:4"],
        ["bench", "compare", "a.json"],
        ["bench", "compare", "a.json", "b.json"],
        ["bench", "compare", "a.json", "b.json", "--threshold", "few"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"nmcompile {nmcompile.__version__}\n")


@pytest.mark.parametrize("name", "compile run bundle inspect fold enforce bench targets".split())
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ")
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--debug"], {}), ([], {"NMC_DEBUG": "1"})],
    ids=["option", "environment"],
)
def test_debugging_shows_the_traceback(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "m.nmc")
    done = CliRunner().invoke(app, [*arguments, "inspect", missing], env=environment)
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot read {missing}")


def test_debugging_does_not_last(tmp_path: Path) -> None:
    runner, missing = CliRunner(), str(tmp_path / "m.nmc")
    runner.invoke(app, ["--debug", "inspect", missing])
    assert "Traceback" not in runner.invoke(app, ["inspect", missing]).stderr


def test_an_interrupt_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nmcompile.runtime.read_artifact", interrupt)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.nmc")])
    assert done.exit_code == 130
    assert "Traceback" not in done.output


def fresh(*arguments: str | Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run `nmc` in a process of its own; the second result is the packages that it imported."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from nmcompile.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return done, {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "tvm"}


def test_help_imports_nothing_heavy() -> None:
    done, packages = fresh("--help")
    assert done.returncode == 0
    assert "Commands:" in done.stdout
    assert not packages & (HEAVY | {"numpy", "tvm_ffi", "rich"})


@pytest.mark.isa("avx512f")
def test_running_imports_the_runtime_only(sparse_artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", example().numpy())
    options = ("-i", tmp_path / "x.npy", "-o", tmp_path / "out", "--json")
    done, packages = fresh("run", sparse_artifact, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"][0]["name"] == "y"
    assert "tvm_ffi" in packages
    assert not packages & HEAVY


def test_inspecting_an_artifact_imports_no_compiler(sparse_artifact: Path) -> None:
    done, packages = fresh("inspect", sparse_artifact, "--json")
    assert done.returncode == 0, done.stderr
    assert not packages & (HEAVY | {"tvm_ffi"})


def test_the_console_script_is_the_command_line() -> None:
    done, _ = fresh("inspect", "/nothere.nmc")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot read /nothere.nmc: No such file or directory\n")
