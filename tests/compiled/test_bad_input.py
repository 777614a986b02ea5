"""Bad input as users meet it: one line that says what to do, exit code 1, nothing half-written."""

import contextlib
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import nmcompile
from nmcompile.cli import app
from nmcompile.errors import PatternError
from nmcompile.runtime import cpu
from tests.support.manifests import FEATURES
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, example, tiny_net


def fails(*arguments: str | Path, output: Path | None = None) -> str:
    """Run `nmc`, expect it to fail as promised, and return what it says after `error: `.

    `output` must not be there afterwards, nor anything beside it that was not there before.
    """
    folder = output.parent if output is not None and output.parent.is_dir() else None
    before = set(folder.iterdir()) if folder is not None else set()
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 1, (done.exit_code, done.output)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    message = lines[0].removeprefix("error: ")
    assert message != lines[0]
    assert "unexpected" not in message, message
    if folder is not None:
        assert set(folder.iterdir()) == before
    return message


def compile_fails(model: Path, *options: str) -> str:
    output = model.parent / "out.nmc"
    return fails("compile", model, "-o", output, *options, output=output)


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, example().numpy())
    return path


@pytest.fixture
def artifact(sparse_artifact: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copy(sparse_artifact, tmp_path / "model.nmc"))


def run_fails(artifact: Path, given: str | Path, *options: str) -> str:
    output = artifact.parent / "results"
    return fails("run", artifact, "--input", given, "-o", output, *options, output=output)


# Models


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file\n", b"\x89PNG\r\n\x1a\n" * 9])
def test_a_file_that_is_not_onnx_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    message = compile_fails(path)
    assert str(path) in message
    assert "not an ONNX model" in message


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    message = compile_fails(path)
    assert f"{path} cannot be read: No such file" in message


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_model_file_is_refused(share: float, sparse_onnx: Path, tmp_path: Path) -> None:
    content = sparse_onnx.read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    message = compile_fails(path)
    assert str(path) in message
    assert "copy it again" in message


def external(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(
        conv_onnx(conv_weight()), path, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    return path


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    message = compile_fails(path)
    assert str(tmp_path / "w.bin") in message
    assert "weight w" in message
    assert "put it next to the model" in message


def test_truncated_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    os.truncate(tmp_path / "w.bin", 100)
    message = compile_fails(path)
    assert f"{tmp_path / 'w.bin'} is truncated" in message
    assert "found 100" in message


@pytest.mark.parametrize(
    ("tail", "domain"),
    [("Det", ""), ("NoSuchOperator", ""), ("FancyNorm", "com.example")],
    ids=["unknown to TVM", "unknown to ONNX", "of another domain"],
)
def test_an_unsupported_operator_is_named(tail: str, domain: str, tmp_path: Path) -> None:
    path = saved(conv_onnx(conv_weight(), tail=tail, domain=domain), tmp_path)
    message = compile_fails(path, "--strict")
    assert tail in message
    assert "tail1" in message
    assert "replace the operator" in message


def test_an_open_shape_asks_for_the_option(tmp_path: Path) -> None:
    path = saved(conv_onnx(conv_weight(), batch="N"), tmp_path)
    message = compile_fails(path)
    assert "input x has the open shape (N, 16, 8, 8)" in message
    assert "--shape x=1,16,8,8" in message


def test_a_shape_that_contradicts_the_model_is_refused(tmp_path: Path) -> None:
    path = saved(conv_onnx(conv_weight()), tmp_path)
    message = compile_fails(path, "--shape", "x=1,3,8,8")
    assert "declared as (1, 16, 8, 8)" in message
    assert "--shape x=1,3,8,8" in message


def test_a_shape_for_an_unknown_input_is_refused(tmp_path: Path) -> None:
    path = saved(conv_onnx(conv_weight()), tmp_path)
    message = compile_fails(path, "--shape", "image=1,16,8,8")
    assert "no input image: expected one of x" in message


def test_a_violated_pattern_names_layer_count_and_index(dense_onnx: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(dense_onnx, tmp_path))
    message = compile_fails(path, "--pattern", "2:4")
    assert "layer wide" in message
    assert "breaks 2:4 in 576 groups, the first at index (0, 0, 0, 0)" in message
    assert "1 more layer" in message
    assert "--enforce" in message


def test_a_violated_pattern_raises_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(PatternError, match=r"layer wide: .* with pruning=Pruning\(\)"):
        nmcompile.compile(
            tiny_net(), output=tmp_path / "m.nmc", example_inputs=example(), pattern="2:4"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pattern", ["5:4", "2-4", "1x0", "2:4@up", ""])
def test_a_pattern_that_is_none_is_refused(pattern: str, tmp_path: Path) -> None:
    path = saved(conv_onnx(conv_weight()), tmp_path)
    message = compile_fails(path, "--pattern", pattern)
    assert message.startswith("pattern ")
    assert "expected" in message


@pytest.mark.parametrize("options", [["--enforce"], []])
def test_blocks_in_a_model_without_zeros_need_a_density(
    options: list[str], dense_onnx: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(dense_onnx, tmp_path))
    message = compile_fails(path, "--pattern", "1x16", *options)
    assert "pattern 1x16: expected layers with zeros, found none in 2 layers" in message
    assert "--enforce --density" in message


def test_excluding_an_unknown_layer_is_refused(sparse_onnx: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sparse_onnx, tmp_path))
    message = compile_fails(path, "--pattern", "2:4", "--exclude", "nothere")
    assert "no layer is called nothere" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    weight = conv_weight()
    weight[3, 2, 1, 0] = value
    message = compile_fails(saved(conv_onnx(weight), tmp_path))
    assert "layer conv1" in message
    assert "1 values that are NaN or infinite, the first at index (3, 2, 1, 0)" in message


def test_batch_norm_statistics_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_net()
    assert model.norm1.running_var is not None
    model.norm1.running_var[5] = float("nan")
    with pytest.raises(nmcompile.errors.WeightError, match=r"layer wide: .* NaN or infinite"):
        nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=example())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(16, 0, 3, 3), (0, 16, 3, 3)])
def test_weights_of_size_zero_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    message = compile_fails(saved(conv_onnx(np.zeros(shape, np.float32)), tmp_path))
    assert "conv1" in message


@pytest.mark.parametrize("command", ["compile", "inspect", "fold"])
@pytest.mark.parametrize("groups", [0, 3])
def test_groups_that_do_not_divide_the_channels_are_refused(
    groups: int, command: str, tmp_path: Path
) -> None:
    model = saved(conv_onnx(conv_weight(16, 5), groups=groups), tmp_path)
    output = tmp_path / "out"
    options = ["-o", str(output)] if command != "inspect" else []
    message = fails(command, model, *options, output=output)
    assert "layer conv1: expected a number of groups that divides its 16 output" in message
    assert f"found {groups}" in message


def test_a_window_larger_than_the_image_is_refused(tmp_path: Path) -> None:
    message = compile_fails(saved(conv_onnx(conv_weight(kernel=11)), tmp_path))
    assert "layer conv1: its window spans 11 pixels, the padded image has only 8" in message


def test_an_output_of_open_shape_is_refused(tmp_path: Path) -> None:
    message = compile_fails(saved(conv_onnx(conv_weight(), tail="NonZero"), tmp_path))
    assert "NonZero (node tail1)" in message


def test_an_unknown_target_is_refused(sparse_onnx: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(sparse_onnx, tmp_path))
    message = compile_fails(path, "--target", "neon")
    assert "target 'neon' is unknown; expected one of: avx512" in message


def test_an_object_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nmcompile.errors.ModelError, match="cannot open an object of type"):
        nmcompile.compile(object(), output=tmp_path / "m.nmc")


def test_a_torch_model_without_example_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nmcompile.errors.ShapeError, match="pass example_inputs"):
        nmcompile.compile(tiny_net(), output=tmp_path / "m.nmc")


# Run time


@pytest.mark.isa("avx512f")
def test_a_wrong_input_name_is_refused(artifact: Path, inputs: Path) -> None:
    assert run_fails(artifact, f"image={inputs}") == "expected the inputs 'x', found 'image'"


@pytest.mark.isa("avx512f")
def test_a_wrong_input_shape_is_refused(artifact: Path, inputs: Path) -> None:
    np.save(inputs, np.zeros((1, 3, 17, 16), np.float32))
    message = run_fails(artifact, inputs)
    assert f"input 'x': expected shape {SHAPE}, found (1, 3, 17, 16)" in message


@pytest.mark.isa("avx512f")
def test_a_wrong_input_dtype_is_refused(artifact: Path, inputs: Path) -> None:
    np.save(inputs, np.zeros(SHAPE, np.float64))
    message = run_fails(artifact, inputs)
    assert "input 'x': expected dtype float32, found float64" in message


def test_an_input_file_that_holds_no_array_is_refused(artifact: Path, inputs: Path) -> None:
    inputs.write_text("1 2 3")
    assert f"input file {inputs} cannot be read" in run_fails(artifact, inputs)


def test_a_pickled_input_file_is_refused(artifact: Path, inputs: Path) -> None:
    np.save(inputs, np.array([object], dtype=object), allow_pickle=True)
    assert f"input file {inputs} cannot be read" in run_fails(artifact, inputs)


def test_a_missing_input_file_is_named(artifact: Path, tmp_path: Path) -> None:
    message = run_fails(artifact, tmp_path / "nothere.npy")
    assert f"input file {tmp_path / 'nothere.npy'} cannot be read" in message
    assert "No such file" in message


@pytest.mark.parametrize("keep", [0, 50, 1000, -1])
def test_a_truncated_artifact_is_refused(keep: int, artifact: Path, inputs: Path) -> None:
    content = artifact.read_bytes()
    artifact.write_bytes(content[:keep])
    assert str(artifact) in run_fails(artifact, inputs)


def section_start(content: bytes, name: str) -> int:
    """Where a part of an artifact begins, by FORMAT.md."""
    length = struct.unpack_from("<Q", content, 32)[0]
    data = (128 + length + 63) // 64 * 64
    sections = {s["name"]: s["offset"] for s in json.loads(content[128 : 128 + length])["sections"]}
    starts = {"header": 20, "manifest": 128 + length // 2}
    return starts.get(name) or int(data + sections[name] + 8)


@pytest.mark.parametrize("section", ["header", "manifest", "library", "weights"])
@pytest.mark.parametrize("command", ["run", "inspect"])
def test_a_flipped_byte_is_refused(
    section: str, command: str, artifact: Path, inputs: Path
) -> None:
    content = bytearray(artifact.read_bytes())
    content[section_start(bytes(content), section)] ^= 0x10
    artifact.write_bytes(content)
    message = run_fails(artifact, inputs) if command == "run" else fails("inspect", artifact)
    assert str(artifact) in message


def test_a_newer_format_version_is_refused(artifact: Path, inputs: Path) -> None:
    content = bytearray(artifact.read_bytes())
    struct.pack_into("<I", content, 8, nmcompile.runtime.FORMAT_VERSION + 1)
    artifact.write_bytes(content)
    message = run_fails(artifact, inputs)
    newest = nmcompile.runtime.FORMAT_VERSION
    assert f"has format version {newest + 1}, this nmcompile reads up to {newest}" in message
    assert "install a newer nmcompile" in message


def test_a_cpu_without_the_features_is_refused(
    artifact: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Old CPU\nflags\t\t: fpu sse2\n")
    monkeypatch.setattr(cpu, "CPUINFO", info)
    message = run_fails(artifact, inputs)
    assert f"{artifact} needs the CPU features {FEATURES[0]}, " in message
    assert "Old CPU" in message


def test_another_digest_than_the_pinned_one_is_refused(artifact: Path, inputs: Path) -> None:
    message = run_fails(artifact, inputs, "--digest", "0" * 64)
    assert "is not the pinned artifact" in message


# Outputs

Writes = Callable[[Path, Path], list[str | Path]]
WRITERS: dict[str, Writes] = {
    "compile": lambda model, out: ["compile", model, "-o", out],
    "fold": lambda model, out: ["fold", model, "-o", out],
    "enforce": lambda model, out: ["enforce", model, "-o", out, "--pattern", "2:4"],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_missing_output_folder_is_made(command: str, dense_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "not" / "there" / "out"
    words = [str(word) for word in WRITERS[command](dense_onnx, output)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_cannot_be_made_is_named(
    command: str, dense_onnx: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("I am a file")
    output = tmp_path / "file" / "out"
    message = fails(*WRITERS[command](dense_onnx, output), output=output)
    assert f"cannot write {output}: Not a directory" in message


def test_a_folder_made_for_what_fails_goes_again(
    dense_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nmcompile.runtime.files.os.fsync", fail)
    fails("fold", dense_onnx, "-o", tmp_path / "not" / "there" / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", WRITERS)
def test_an_output_that_is_a_folder_is_refused(
    command: str, dense_onnx: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    message = fails(*WRITERS[command](dense_onnx, output), output=output)
    assert f"cannot write {output}: it is a folder" in message


@contextlib.contextmanager
def files_limited_to(nbytes: int) -> Iterator[None]:
    """Make the kernel fail writes midway, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_leaves_the_old_file(command: str, tmp_path: Path) -> None:
    # The weights (1.2 MB) do not fit the limit, the library and its object files do.
    model = saved(conv_onnx(conv_weight(256, 128)), tmp_path)
    output = tmp_path / "out"
    output.write_bytes(b"what was there before")
    with files_limited_to(500_000):
        message = fails(*WRITERS[command](model, output), output=output)
    assert f"cannot write {output}: File too large" in message
    assert output.read_bytes() == b"what was there before"


@pytest.mark.isa("avx512f")
def test_results_that_cannot_be_written_leave_nothing(
    artifact: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "results").mkdir()
    monkeypatch.setattr("nmcompile.runtime.files.os.fsync", fail)
    message = run_fails(artifact, inputs)
    assert "y.npy: No space left on device" in message
    assert list((tmp_path / "results").iterdir()) == []


def test_a_results_folder_that_is_a_file_is_named(artifact: Path, inputs: Path) -> None:
    (artifact.parent / "results").write_text("I am a file")
    message = run_fails(artifact, inputs)
    assert f"cannot write {artifact.parent / 'results' / 'output.npy'}: Not a dir" in message


def test_a_defect_is_one_line_that_asks_for_a_report(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("nmcompile.runtime.read_artifact", fail)
    done = CliRunner().invoke(app, ["inspect", str(artifact)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: unexpected ZeroDivisionError: division by zero;")
    assert "NMC_DEBUG=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
