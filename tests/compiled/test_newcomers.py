"""What newcomers stumbled over, one test each: from Python and from a shell."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import nmcompile
from nmcompile.cli import app


def nmc(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


# What is printed


def test_a_printed_report_is_the_table_of_the_command_line(sparse_onnx: Path) -> None:
    report = nmcompile.inspect(sparse_onnx, pattern="2:4")
    assert f"{report}\n" == nmc("inspect", sparse_onnx, "--pattern", "2:4")
    assert "violations" in str(report) and "112, first at (0, 0, 0, 0)" in str(report)


def test_a_printed_result_is_the_table_of_the_command_line(
    sparse_result: nmcompile.CompileResult, sparse_onnx: Path, tmp_path: Path
) -> None:
    shown = nmc("compile", sparse_onnx, "-o", tmp_path / "m.nmc").splitlines()
    lines = str(sparse_result).splitlines()
    assert "conv2d_f32_nm" in str(sparse_result)
    of_the_file = ("output", "seconds")
    assert [line for line in lines if not line.startswith(of_the_file)] == [
        line for line in shown if not line.startswith(of_the_file)
    ]


@pytest.mark.isa("avx512f")
def test_a_session_shows_what_goes_in_and_comes_out(sparse_artifact: Path) -> None:
    session = nmcompile.runtime.load(sparse_artifact, threads=1)
    about = "x float32 1x3x16x16 -> y float32 1x10; avx512, 1 thread"
    assert repr(session) == f"<Session of {sparse_artifact}: {about}>"
    session.close()
    assert repr(session).endswith(", closed>")


# One spelling of patterns


def test_the_share_to_keep_is_part_of_the_pattern_in_every_command(
    dense_onnx: Path, tmp_path: Path
) -> None:
    apart = ("--pattern", "1x4", "--density", "0.5")
    nmc("enforce", dense_onnx, "-o", tmp_path / "apart.onnx", *apart)
    nmc("enforce", dense_onnx, "-o", tmp_path / "one.onnx", "--pattern", "1x4@0.5")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "apart.onnx").read_bytes()
    options = ("--pattern", "1x4@0.5", "--exclude", "stem", "--exclude", "head")
    text = nmc("compile", tmp_path / "one.onnx", "-o", tmp_path / "m.nmc", *options)
    assert "conv2d_f32_blocks" in text or "1x4" in text


@pytest.mark.parametrize(("pattern", "broken"), [("1x4@0.5", 0), ("1x4@0.25", 32)])
def test_inspect_counts_what_is_kept_beyond_the_share(
    pattern: str, broken: int, dense_onnx: Path
) -> None:
    sparse = nmcompile.enforce(dense_onnx, "1x4@0.5")
    report = nmcompile.inspect(sparse, pattern=pattern)
    found = {layer.name: layer.violations for layer in report.layers}
    # Of the 16 x 16 / 4 blocks half are there, and a quarter may be.
    assert next(found[name] for name in found if "wide" in name) == broken / 2
    assert report.checked == pattern


def test_python_takes_the_share_where_it_takes_a_pattern(dense_onnx: Path) -> None:
    one = nmcompile.enforce(dense_onnx, "1x4@0.25")
    apart = nmcompile.enforce(dense_onnx, "1x4", pruning=nmcompile.Pruning(density=0.25))
    assert one.SerializeToString() == apart.SerializeToString()
