"""What the commands do and print; what they refuse is in test_bad_input.py."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

import nmcompile
from nmcompile.cli import app
from nmcompile.runtime import cpu
from nmcompile.sparsity import check, parse_pattern
from tests.support.manifests import FEATURES
from tests.support.peer import by_peer
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, example


def nmc(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def nmc_json(*arguments: str | Path) -> Any:
    """Run with --json; everything on stdout must be one document."""
    done = nmc(*arguments, "--json")
    return json.loads(done.stdout)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", example().numpy())
    return tmp_path / "x.npy"


def expected_output(model: Path) -> Any:
    return by_peer(model, {"x": example().numpy()})[0]


# compile


@pytest.mark.isa("avx512f")
def test_compile_and_run_compute_what_onnxruntime_does(
    dense_onnx: Path, inputs: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "m.nmc"
    options = ("--target", "avx512", "--pattern", "auto")
    document = nmc_json("compile", dense_onnx, "-o", artifact, *options)
    assert document["output"] == str(artifact)
    assert document["bytes"] == artifact.stat().st_size
    assert [layer["density"] for layer in document["report"]["layers"]] == [1.0] * 4
    nmc("run", artifact, "--input", f"x={inputs}", "--output", tmp_path / "out")
    found, expected = np.load(tmp_path / "out" / "y.npy"), expected_output(dense_onnx)
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_compile_tells_people_about_layers_and_file(dense_onnx: Path, tmp_path: Path) -> None:
    options = ("--pattern", "2:4", "--enforce", "--exclude", "*narrow*")
    text = nmc("compile", dense_onnx, "-o", tmp_path / "m.nmc", *options).stdout
    assert "2:4" in text
    assert "dropped" in text
    assert "excluded" in text
    assert str(tmp_path / "m.nmc") in text


@pytest.mark.isa("avx512f")
def test_compile_permutes_as_enforce_does(dense_onnx: Path, inputs: Path, tmp_path: Path) -> None:
    search = ("--pattern", "2:4", "--permute", "--seed", "3")
    nmc("enforce", dense_onnx, "-o", tmp_path / "m.onnx", *search)
    options = (*search, "--enforce")
    document = nmc_json("compile", dense_onnx, "-o", tmp_path / "m.nmc", *options)
    assert any("before channels were permuted" in note for note in document["report"]["notes"])
    nmc("run", tmp_path / "m.nmc", "--input", f"x={inputs}", "--output", tmp_path / "out")
    found, expected = np.load(tmp_path / "out" / "y.npy"), expected_output(tmp_path / "m.onnx")
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
    late = nmc_json("compile", dense_onnx, "-o", tmp_path / "m.nmc", *options, "--time-limit", "0")
    assert "ended by the time limit of 0 s" in late["report"]["notes"][-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--permute",), "needs to know the pattern; found 'auto'"),
        (("--permute", "--pattern", "2:4"), "expected mode 'project'"),
    ],
)
def test_compile_permutes_only_what_it_enforces(
    options: tuple[str, ...], said: str, dense_onnx: Path, tmp_path: Path
) -> None:
    command = ["compile", str(dense_onnx), "-o", str(tmp_path / "m.nmc"), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and said in done.stderr
    assert not (tmp_path / "m.nmc").exists()


def test_compile_fixes_open_shapes(tmp_path: Path) -> None:
    onnx.save(conv_onnx(conv_weight(), batch="N"), tmp_path / "open.onnx")
    nmc("compile", tmp_path / "open.onnx", "-o", tmp_path / "m.nmc", "--shape", "x=3,16,8,8")
    artifact = nmcompile.runtime.read_artifact(tmp_path / "m.nmc")
    assert artifact.manifest.inputs[0].shape == (3, 16, 8, 8)


def test_compile_takes_a_torch_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "def small():\n"
        "    print('noise of the factory')\n"
        "    return torch.nn.Conv2d(4, 8, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    document = nmc_json("compile", "my_models:small", "-o", "m.nmc", "--shape", "input=1,4,8,8")
    assert document["report"]["layers"][0]["shape"] == [8, 4, 3, 3]


# run


@pytest.mark.isa("avx512f")
def test_run_takes_a_file_without_a_name(
    sparse_artifact: Path, sparse_onnx: Path, inputs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "out"
    document = nmc_json("run", sparse_artifact, "-i", inputs, "-o", folder, "--threads", "1")
    assert document["threads"] == 1
    (told,) = document["outputs"]
    assert (told["name"], told["shape"], told["dtype"]) == ("y", [1, 10], "float32")
    assert told["file"] == str(folder / "y.npy")
    found, expected = np.load(folder / "y.npy"), expected_output(sparse_onnx)
    assert (told["lowest"], told["highest"]) == (found.min(), found.max())
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_outputs_whose_names_are_no_file_names_get_files() -> None:
    from nmcompile.cli.run import file_names

    found = file_names(["a/b:0", "a_b_0", "..", "plain"])
    assert found == {
        "a/b:0": "a_b_0.npy",
        "a_b_0": "a_b_0_1.npy",
        "..": "output.npy",
        "plain": "plain.npy",
    }


# inspect


def test_inspect_reports_layers_and_violations(dense_onnx: Path) -> None:
    document = nmc_json("inspect", dense_onnx, "--pattern", "2:4")
    assert document["kind"] == "model"
    wide = next(layer for layer in document["layers"] if "wide" in layer["name"])
    assert (wide["violations"], wide["first_violation"]) == (576, [0, 0, 0, 0])
    text = nmc("inspect", dense_onnx, "--pattern", "2:4").stdout
    assert "576, first at (0, 0, 0, 0)" in text


def test_inspect_reads_an_artifact(sparse_artifact: Path) -> None:
    document = nmc_json("inspect", sparse_artifact)
    artifact = nmcompile.runtime.read_artifact(sparse_artifact)
    assert document["kind"] == "artifact"
    assert document["digest"] == artifact.digest
    assert document["manifest"]["target"]["kind"] == "avx512"
    assert document["manifest"]["inputs"] == [
        {"name": "x", "shape": list(SHAPE), "dtype": "float32"}
    ]
    text = nmc("inspect", sparse_artifact).stdout
    assert artifact.digest in text
    assert "x float32 1x3x16x16" in text
    assert "conv2d_f32_nm" in text


def test_inspect_knows_an_artifact_of_another_name(sparse_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(sparse_artifact.read_bytes())
    assert nmc_json("inspect", tmp_path / "model.bin")["kind"] == "artifact"


def test_inspect_reads_an_artifact_of_another_cpu(
    sparse_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Old CPU\nflags\t\t: fpu\n")
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    document = nmc_json("inspect", sparse_artifact)
    assert document["missing_cpu_features"] == list(FEATURES)
    assert f"lacks {FEATURES[0]}" in nmc("inspect", sparse_artifact).stdout


# fold, enforce


def test_fold_writes_a_model_that_computes_the_same(sparse_onnx: Path, tmp_path: Path) -> None:
    document = nmc_json("fold", sparse_onnx, "-o", tmp_path / "folded.onnx")
    assert document["output"] == str(tmp_path / "folded.onnx")
    np.testing.assert_allclose(
        expected_output(tmp_path / "folded.onnx"), expected_output(sparse_onnx), atol=1e-5
    )


def test_enforce_writes_the_pattern_and_reports_the_loss(dense_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "sparse.onnx"
    document = nmc_json("enforce", dense_onnx, "--pattern", "2:4", "-o", output)
    rows = {row["name"].strip("/").split("/")[0]: row for row in document["layers"]}
    assert rows["wide"]["density"] == 0.5
    assert 0 < rows["wide"]["energy_dropped"] < 0.5
    assert "first convolution" in rows["stem"]["skipped"]
    weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(output).graph.initializer]
    pruned = [w for w in weights if w.ndim == 4 and w.shape[1] == 16]
    assert len(pruned) == 2
    assert all(check(weight, parse_pattern("2:4")).ok for weight in pruned)


def test_enforce_prints_a_table_for_people(dense_onnx: Path, tmp_path: Path) -> None:
    options = ("--pattern", "1x16", "--density", "0.5", "--exclude", "*wide*")
    text = nmc("enforce", dense_onnx, "-o", tmp_path / "sparse.onnx", *options).stdout
    assert "energy dropped" in text
    assert "it is excluded" in text


@pytest.mark.parametrize(
    "options", [("--pattern", "2:4"), ("--pattern", "1x4", "--density", "0.5")]
)
def test_enforce_permutes_and_reports_what_that_keeps(
    options: tuple[str, ...], dense_onnx: Path, tmp_path: Path
) -> None:
    plain = nmc_json("enforce", dense_onnx, "-o", tmp_path / "plain.onnx", *options)
    output = tmp_path / "permuted.onnx"
    permute = ("--permute", "--seed", "3", "--time-limit", "20")
    document = nmc_json("enforce", dense_onnx, "-o", output, *options, *permute)
    assert document["search_finished"] is True
    expected = {row["name"]: 1 - row["energy_dropped"] for row in plain["layers"]}
    gains = []
    for row in document["layers"]:
        if row["skipped"] is None:
            assert row["energy_kept_before"] == pytest.approx(expected[row["name"]])
            assert row["energy_kept_after"] == pytest.approx(1 - row["energy_dropped"])
            gains.append(row["energy_kept_after"] - row["energy_kept_before"])
        else:
            assert "energy_kept_before" not in row
    assert len(gains) == 2 and min(gains) > 0
    error = {}
    for name in ("plain", "permuted"):
        found = expected_output(tmp_path / f"{name}.onnx")
        error[name] = np.abs(found - expected_output(dense_onnx)).mean()
    assert error["permuted"] < 1.5 * error["plain"]
    weights = [onnx.numpy_helper.to_array(w) for w in onnx.load(output).graph.initializer]
    pruned = [w for w in weights if w.ndim == 4 and w.shape[1] == 16]
    assert all(check(weight, parse_pattern(options[1])).ok for weight in pruned)


def test_enforce_prints_the_energy_kept_before_and_after(dense_onnx: Path, tmp_path: Path) -> None:
    options = ("--pattern", "2:4", "--permute", "--exclude", "*narrow*")
    text = nmc("enforce", dense_onnx, "-o", tmp_path / "sparse.onnx", *options).stdout
    assert "energy kept before" in text and "and after" in text
    assert "it is excluded" in text and "time limit" not in text
    text = nmc(
        "enforce", dense_onnx, "-o", tmp_path / "sparse.onnx", *options, "--time-limit", "0"
    ).stdout
    assert "ended by the time limit of 0 s" in text


def test_permuting_for_a_pattern_without_groups_is_one_line_of_error(
    dense_onnx: Path, tmp_path: Path
) -> None:
    options = ["--pattern", "unstructured", "--density", "0.5", "--permute"]
    command = ["enforce", str(dense_onnx), "-o", str(tmp_path / "sparse.onnx"), *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "expected an N:M or 1xN pattern, found unstructured" in done.output
    assert not (tmp_path / "sparse.onnx").exists()


# targets


def test_targets_lists_features_and_this_machine() -> None:
    row, integers, brains, tiles, *gpus = nmc_json("targets")["targets"]
    assert row["name"] == "avx512" and row["missing_gpu"] == ""
    assert [integers["name"], brains["name"]] == ["avx512_vnni", "avx512_bf16"]
    assert tiles["name"] == "avx512_amx" and "amx_tile" in tiles["cpu_features"]
    assert [gpu["name"] for gpu in gpus] == ["sm_80", "sm_86", "sm_89", "sm_90a"]
    assert row["cpu_features"] == list(FEATURES)
    for cpus in (row, integers, brains, tiles):
        assert set(cpus["missing_cpu_features"]) == set(cpus["cpu_features"]) - cpu.host()[1]
    assert "avx512" in nmc("targets").stdout
