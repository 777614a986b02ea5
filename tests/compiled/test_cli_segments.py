"""Models of parts from a shell: what the commands print, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from nmcompile.cli import app
from tests.support.mixed_models import by_onnxruntime, counting, image, reader


def nmc(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.stderr)
    return done


def nmc_json(*arguments: str | Path) -> Any:
    return json.loads(nmc(*arguments, "--json").stdout)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(counting(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def artifact(model: Path) -> Path:
    nmc("compile", model, "-o", model.with_suffix(".nmc"))
    return model.with_suffix(".nmc")


def test_compile_prints_the_parts_and_why(model: Path, tmp_path: Path) -> None:
    done = nmc("compile", model, "-o", tmp_path / "m.nmc")
    for text in ("nmcompile", "onnxruntime", "1 x NonZero", "NonZero (node places): expected an"):
        assert text in done.stdout


def test_compile_and_run_give_what_onnxruntime_does(artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", image())
    nmc("run", artifact, "--input", f"x={tmp_path / 'x.npy'}", "-o", tmp_path / "out")
    for name, wanted in zip(
        ("a", "places"), by_onnxruntime(counting(), {"x": image()}), strict=True
    ):
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{name}.npy"), wanted, atol=1e-5)


def test_programs_get_the_parts_too(model: Path, tmp_path: Path) -> None:
    compiled = nmc_json("compile", model, "-o", tmp_path / "m.nmc")["report"]
    looked = nmc_json("inspect", model)
    assert compiled["segments"] == looked["segments"]
    assert [segment["runs"] for segment in looked["segments"]] == ["nmcompile", "onnxruntime"]
    assert looked["segments"][1]["operators"] == {"NonZero": 1}
    steps = nmc_json("inspect", tmp_path / "m.nmc")["manifest"]["steps"]
    assert [step["about"] for step in steps] == looked["segments"]


@pytest.mark.parametrize("options", [("--strict",), ("--rest", "none")])
@pytest.mark.parametrize("command", ["compile", "inspect"])
def test_strict_refuses_what_is_not_ours(
    command: str, options: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    output = ("-o", tmp_path / "m.nmc") if command == "compile" else ()
    done = nmc(command, model, *output, *options, code=1)
    assert "NonZero (node places): expected an operator of docs/operators.md" in done.stderr
    assert not (tmp_path / "m.nmc").exists()


def test_an_unknown_rest_is_named(model: Path, tmp_path: Path) -> None:
    done = nmc("compile", model, "-o", tmp_path / "m.nmc", "--rest", "torch", code=1)
    assert "rest 'torch' is unknown; expected 'onnxruntime' or 'none'" in done.stderr


def test_inspect_shows_the_parts_of_an_artifact(artifact: Path) -> None:
    done = nmc("inspect", artifact)
    for text in ("1 x NonZero", "for onnxruntime", "places int64 4x?", "onnxruntime 1."):
        assert text in done.stdout


def test_a_bundle_refuses_it_and_says_what_to_do(artifact: Path, tmp_path: Path) -> None:
    done = nmc("bundle", artifact, "-o", tmp_path / "bundle", code=1)
    assert "onnxruntime runs parts of it" in done.stderr
    assert "--rest none" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_bench_measures_it_and_its_parts(tmp_path: Path) -> None:
    onnx.save(reader(), tmp_path / "reader.onnx")
    results = tmp_path / "results.json"
    nmc(
        "bench", tmp_path / "reader.onnx", "--against", "onnxruntime", "--threads", "1",
        "--patterns", "dense", "--rounds", "1", "--output", results,
    )  # fmt: skip
    text = results.read_text()
    assert "onnxruntime: LSTM" in text
