"""nmc quantize, and nmc compile --precision int8, as a user calls them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import nmcompile
from nmcompile.cli import app
from nmcompile.errors import InputError, PatternError, TargetError
from nmcompile.sparsity import PROJECT
from tests.support.quantised import as_defined
from tests.support.tiny_models import SHAPE, example

ISA = "avx512_vnni"


def nmc(*arguments: str | Path, fails: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == fails, done.output
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled samples of `tiny_net`'s shape."""
    path = tmp_path_factory.mktemp("data") / "d.npz"
    random = np.random.default_rng(0)
    images = random.standard_normal((16, *SHAPE[1:])).astype(np.float32)
    np.savez(path, x=images, labels=np.arange(16) % 10)
    return path


@pytest.fixture(scope="module")
def quantised(sparse_onnx: Path, data: Path, shared: Path) -> Path:
    """`sparse_onnx`, quantised."""
    nmc("quantize", sparse_onnx, "--data", data, "-o", shared / "q.onnx")
    return shared / "q.onnx"


# quantize


def test_quantize_writes_a_model_that_onnxruntime_runs(sparse_onnx: Path, quantised: Path) -> None:
    feeds = {"x": example(seed=5).numpy()}
    found = as_defined(onnx.load(quantised), feeds)[0]
    expected = as_defined(onnx.load(sparse_onnx), feeds)[0]
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_quantize_prints_one_document_for_programs(
    sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "q.onnx"
    keep = ("--keep-float", "st*", "--keep-float", "head")
    words = ("--samples", "8", "--statistics", "percentile", *keep)
    done = nmc("quantize", sparse_onnx, "--data", data, "-o", output, *words, "--json")
    document = json.loads(done.stdout)
    assert document["output"] == str(output)
    assert document["bytes"] == output.stat().st_size
    report = document["report"]
    assert report["kept"] == ["stem", "head"]
    assert (report["calibrated"], report["measured"]) == (6, 2)
    assert report["statistics"] == "percentile"
    assert {layer["name"]: layer["precision"] for layer in report["layers"]} == {
        "stem": "float32", "wide": "int8", "narrow": "int8", "head": "float32",
    }  # fmt: skip
    assert report["loss"]["top1"] is not None


def test_quantize_tells_people_what_each_layer_and_the_output_lose(
    sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    done = nmc("quantize", sparse_onnx, "--data", data, "-o", tmp_path / "q.onnx", "--rank")
    for said in ("wide", "2:4", "alone dB", "these hurt most (alone):", "4 others measured on"):
        assert said in done.stdout
    for fact in ("output", "top class", "accuracy", str(tmp_path / "q.onnx")):
        assert fact in done.stdout


def test_quantize_leaves_layers_in_float_until_the_loss_is_small(
    sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--data", data, "-o", tmp_path / "q.onnx", "--json", "--max-loss", "52dB")
    report = json.loads(nmc("quantize", sparse_onnx, *words).stdout)["report"]
    assert report["loss"]["decibels"] >= 52
    assert 0 < len(report["kept"]) < 4


def test_quantize_takes_a_folder_of_images(tmp_path: Path, sparse_onnx: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 30, 3)).astype(np.uint8)
        image.fromarray(pixels).save(tmp_path / f"{index}.png")
    words = ("--data", tmp_path, "--mean", "0.5", "--std", "0.2,0.3,0.4", "--json")
    done = nmc("quantize", sparse_onnx, *words, "-o", tmp_path / "q.onnx")
    report = json.loads(done.stdout)["report"]
    assert (report["calibrated"], report["held_out"]) == (3, False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nowhere"), "cannot read nowhere: no such folder or .npz file"),
        (("--keep-float", "tail"), "no layer to keep in float32 is called tail"),
        (("--max-loss", "little"), "the largest loss is 'little'"),
        (("--statistics", "mean"), "statistics 'mean' are unknown"),
        (("-o", "/dev/null/q.onnx"), "cannot write /dev/null/q.onnx: Not a directory"),
    ],
)
def test_quantize_refuses_in_one_line(
    words: tuple[str, ...], said: str, sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    usual = ("--data", data, "-o", tmp_path / "q.onnx")
    done = nmc("quantize", sparse_onnx, *usual, *words, fails=1)
    assert said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("--mean", "0.5"), ("--mean", "a", "--std", "1"), ("--samples", "0")]
)
def test_quantize_refuses_wrong_usage(
    words: tuple[str, ...], sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    nmc("quantize", sparse_onnx, "--data", data, "-o", tmp_path / "q.onnx", *words, fails=2)


# compile --precision


@pytest.mark.isa(ISA)
def test_compile_quantises_and_compiles_in_one_step(
    sparse_onnx: Path, quantised: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--precision", "int8", "--data", data, "--target", ISA, "--json")
    done = nmc("compile", sparse_onnx, "-o", tmp_path / "m.nmc", *words)
    document = json.loads(done.stdout)
    assert document["quantization"]["kept"] == []
    assert document["report"]["title"] == str(sparse_onnx)
    assert all("_i8_" in layer["kernel"] for layer in document["report"]["layers"])
    x = example(seed=5).numpy()
    with nmcompile.runtime.load(tmp_path / "m.nmc") as session:
        found = session.run({"x": x})["y"]
    expected = as_defined(onnx.load(quantised), {"x": x})[0]
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)


def test_compile_tells_people_what_quantising_cost(
    sparse_onnx: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--precision", "int8", "--data", data, "--target", ISA)
    text = nmc("compile", sparse_onnx, "-o", tmp_path / "m.nmc", *words).stdout
    assert "signal to quantisation noise" in text and "accuracy" in text


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"precision": "fp8"}, TargetError, "precision 'fp8' is unknown; expected int8"),
        ({"precision": "int8", "target": "avx512"}, TargetError, f"needs the target {ISA}"),
        ({"precision": "int8", "calibration": None}, InputError, "expected calibration data"),
        ({"precision": "int8", "pruning": PROJECT}, PatternError, "prune with `nmc enforce`"),
        ({}, InputError, "are for quantising: expected precision='int8'"),
    ],
)
def test_compile_refuses_precisions_by_name(
    options: dict[str, Any],
    error: type[Exception],
    said: str,
    sparse_onnx: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    usual: dict[str, Any] = {"target": ISA, "calibration": data}
    with pytest.raises(error, match=said):
        nmcompile.compile(sparse_onnx, output=tmp_path / "m.nmc", **(usual | options))
