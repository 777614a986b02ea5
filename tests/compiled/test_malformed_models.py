"""ONNX models that break a rule, ask for files elsewhere or for sizes that cannot be meant."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import nmcompile
from nmcompile.errors import DeviceError, ModelError, NmcompileError, ShapeError
from nmcompile.explain import machine_reason
from nmcompile.quiet import quiet
from nmcompile.tables import printable
from tests.support.tiny_models import conv_onnx, conv_weight

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proto() -> onnx.ModelProto:
    return conv_onnx(conv_weight())


def refusal(model: onnx.ModelProto, folder: Path) -> NmcompileError:
    """What compiling a file with a model raises, which has to be of ours."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(NmcompileError) as caught:
        nmcompile.compile(path, output=folder / "m.nmc")
    return caught.value


def refer(model: onnx.ModelProto, location: str, offset: str = "0", length: str = "9216") -> None:
    """Let the weight be in an external file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "inner/../../w.bin", "link.bin", ""]
)
def test_data_outside_of_the_models_folder_is_not_opened(
    location: str, proto: onnx.ModelProto, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(9216))
    (folder / "link.bin").symlink_to("../w.bin")
    refer(proto, location)
    error = refusal(proto, folder)
    assert isinstance(error, ModelError)
    assert "outside of the model's own folder" in str(error) and "weight w" in str(error)


@pytest.mark.parametrize("numbers", [("-1", "4"), ("x", "4"), ("0", str(1 << 70))])
def test_offsets_that_are_none_are_named(
    numbers: tuple[str, str], proto: onnx.ModelProto, tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(9216))
    refer(proto, "w.bin", *numbers)
    assert "expected a number of bytes" in str(refusal(proto, tmp_path))


def test_a_pipe_is_no_external_data(proto: onnx.ModelProto, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.bin")
    refer(proto, "w.bin")
    assert "expected that file, found none" in str(refusal(proto, tmp_path))


def _set_raw(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"\0" * 100


def _set_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 17


def _set_negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -16


def _set_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def _set_rank(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims.append(1)


def _set_sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", 1, [1, 16, 8, 8]))


def _drop_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.pop()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_set_raw, "weight w of shape [16, 16, 3, 3] and type FLOAT needs 9216 bytes, found 100"),
        (_set_dims, "needs 9792 bytes, found 9216"),
        (_set_negative, "the shape [-16, 16, 3, 3]; expected no negative dimensions"),
        (_set_type, "has the data type 99"),
        (_set_rank, "conv1"),
        (_set_sequence, "input x is not a tensor"),
        (_drop_input, "conv1"),
    ],
)
def test_a_malformed_model_is_named(
    damage: Callable[[onnx.ModelProto], None], named: str, proto: onnx.ModelProto, tmp_path: Path
) -> None:
    damage(proto)
    error = refusal(proto, tmp_path)
    assert isinstance(error, ModelError)
    assert named in str(error)


@pytest.mark.parametrize("batch", [1 << 31, (1 << 31) - 1, 1 << 40])
def test_a_batch_that_cannot_be_meant_is_refused(batch: int, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"input x of shape \(\d+, 16, 8, 8\) has \d+ elements"):
        nmcompile.compile(
            conv_onnx(conv_weight(), batch="n"),
            output=tmp_path / "m.nmc",
            shapes={"x": (batch, 16, 8, 8)},
        )


def test_a_tensor_that_kernels_cannot_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="a tensor of the model of shape"):
        nmcompile.compile(
            conv_onnx(conv_weight(512, 1, 1), batch="n"),
            output=tmp_path / "m.nmc",
            shapes={"x": (1 << 17, 1, 8, 8)},
        )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("std::bad_alloc"), "memory is too small"),
        (
            RuntimeError("ld.lld: error: No space left on device"),
            "could not be written",
        ),
        (OSError(27, "File too large"), "could not be written"),
    ],
)
def test_what_the_machine_lacks_is_named(error: Exception, reason: str) -> None:
    found = machine_reason(error)
    assert isinstance(found, DeviceError) and reason in str(found)
    assert machine_reason(ValueError("something else")) is None


def test_what_libraries_log_does_not_reach_users(proto: onnx.ModelProto, tmp_path: Path) -> None:
    """A model whose import fails half-way, and one that is read with complaints."""
    for name, tail in (("det", "Det"), ("two", "Relu")):
        model = conv_onnx(conv_weight(), tail=tail)
        if name == "two":
            model.graph.node[1].input.append("c")
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    code = """
import sys, nmcompile
for name in ("det", "two"):
    try:
        path = f"{sys.argv[1]}/{name}.onnx"
        nmcompile.compile(path, output=f"{sys.argv[1]}/m.nmc", rest="none")
    except nmcompile.errors.NmcompileError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("refused\nrefused\n", "")


def test_only_logged_lines_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(), quiet():
        os.write(2, b"[12:34:56] /src/some.cc:67: Warning: something of TVM's\nsomebody else's\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "somebody else's\nafter\n"


def test_control_characters_are_escaped() -> None:
    assert printable("conv\x1b[2J\r\n\ud800\u202eé😀") == "conv\\x1b[2J\\r\\n\\ud800\\u202eé😀"
