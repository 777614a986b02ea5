"""The artifact file: what is written is read back, and nothing else is accepted."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nmcompile.errors import ArtifactError
from nmcompile.runtime import FORMAT_VERSION, read_artifact, write_artifact
from tests.support.examples import examples
from tests.support.manifests import manifest

DTYPES = [np.dtype(n) for n in "f4 f2 i1 u1 i2 u2 i4 i8 ?".split()] + [np.dtype(ml_dtypes.bfloat16)]
LIBRARY = bytes(range(1, 101))
WEIGHTS = {
    "conv1.weight": np.arange(30, dtype=np.float32).reshape(2, 3, 5),
    "conv1.bias": np.array([1, -1], np.int32),
}

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.nmc"
    write_artifact(path, manifest(), LIBRARY, WEIGHTS)
    return path


def signed(path: Path, text: bytes) -> None:
    """Put another manifest into the file, with a header that agrees with it."""
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data, 32)[0]
    body = data[(128 + length + 63) // 64 * 64 :]
    text_end = (128 + len(text) + 63) // 64 * 64
    header = struct.pack("<QQQ", text_end + len(body), 128, len(text))
    header = data[:16] + header + hashlib.sha256(text).digest()
    path.write_bytes(header.ljust(128, b"\0") + text.ljust(text_end - 128, b"\0") + body)


def stored(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data, 32)[0]
    result: dict[str, Any] = json.loads(data[128 : 128 + length])
    return result


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.array_shapes(min_dims=0, max_dims=5, max_side=4).flatmap(
        lambda shape: st.binary(
            min_size=int(np.prod(shape)) * dtype.itemsize,
            max_size=int(np.prod(shape)) * dtype.itemsize,
        ).map(lambda data: np.frombuffer(data, dtype).reshape(shape))
    )
)


@examples(100)
@given(
    weights=st.dictionaries(st.text(max_size=20), arrays, max_size=6),
    library=st.binary(max_size=300),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Any], library: bytes
) -> None:
    path = tmp_path_factory.mktemp("round") / "model.nmc"
    digest = write_artifact(path, manifest(), library, weights)
    artifact = read_artifact(path)
    assert artifact.digest == digest
    assert bytes(artifact.library) == library
    assert [spec.name for spec in artifact.manifest.params] == list(weights)
    for found, expected in zip(artifact.params, weights.values(), strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


def test_the_manifest_is_read_back(artifact: Path) -> None:
    found = read_artifact(artifact).manifest
    expected = manifest()
    for name in ("producer", "target", "inputs", "outputs", "layers", "calls", "model", "entry"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.workspace_bytes == expected.workspace_bytes


def test_weights_are_aligned_and_mapped(artifact: Path) -> None:
    for array in read_artifact(artifact).params:
        assert array.ctypes.data % 64 == 0
        assert array.flags.writeable  # DLPack refuses anything else
        assert not array.flags.owndata


def test_writing_to_a_mapped_weight_leaves_the_file_alone(artifact: Path) -> None:
    before = artifact.read_bytes()
    read_artifact(artifact).params[0][...] = 7
    assert artifact.read_bytes() == before


def test_strided_weights_are_stored_in_c_order(tmp_path: Path) -> None:
    weight = np.arange(24, dtype=np.float32).reshape(4, 6).T
    write_artifact(tmp_path / "m.nmc", manifest(), LIBRARY, {"w": weight})
    np.testing.assert_array_equal(read_artifact(tmp_path / "m.nmc").params[0], weight)


def test_equal_models_give_equal_files(artifact: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path / "again.nmc", manifest(), LIBRARY, WEIGHTS)
    assert (tmp_path / "again.nmc").read_bytes() == artifact.read_bytes()


def test_sections_longer_than_one_digest(tmp_path: Path) -> None:
    path = tmp_path / "big.nmc"
    weight = np.random.default_rng(0).integers(0, 255, (40 << 20) + 3, np.uint8)
    write_artifact(path, manifest(), LIBRARY, {"w": weight, "v": weight[:5]})
    artifact = read_artifact(path)
    assert [len(section.sha256) for section in artifact.manifest.sections] == [1, 3]
    np.testing.assert_array_equal(artifact.params[0], weight)
    with path.open("r+b") as file:
        file.seek(-(20 << 20), os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ArtifactError, match="bytes 16777216 to 33554432 of its section 'weights'"):
        read_artifact(path)


def test_a_flipped_bit_in_any_byte_is_refused(artifact: Path) -> None:
    data = artifact.read_bytes()
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << (i % 8)
        artifact.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            read_artifact(artifact)
            pytest.fail(f"byte {i} was not checked")


def test_truncation_at_any_length_is_refused(artifact: Path) -> None:
    data = artifact.read_bytes()
    for length in range(len(data)):
        artifact.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            read_artifact(artifact)
            pytest.fail(f"the first {length} bytes were accepted")


def test_a_cut_file_is_named_with_both_sizes(artifact: Path) -> None:
    data = artifact.read_bytes()
    artifact.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=f"expected file size {len(data)}, actual"):
        read_artifact(artifact)


def test_trailing_bytes_are_refused(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="expected file size"):
        read_artifact(artifact)


def test_a_newer_format_version_is_named(artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    struct.pack_into("<I", data, 8, FORMAT_VERSION + 6)
    artifact.write_bytes(data)
    message = f"format version {FORMAT_VERSION + 6}, this nmcompile reads up to {FORMAT_VERSION}"
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_version_one_is_read(artifact: Path) -> None:
    top = stored(artifact)
    del top["prepare"]
    top["format_version"] = 1
    signed(artifact, json.dumps(top).encode())
    data = bytearray(artifact.read_bytes())
    struct.pack_into("<I", data, 8, 1)
    artifact.write_bytes(data)
    assert read_artifact(artifact).manifest.prepare == ""


def test_text_beyond_the_basic_plane_is_read(artifact: Path) -> None:
    top = stored(artifact)
    top["layers"] = [{"name": "\N{GRINNING FACE}", "density": 0.5, "values": [[-1, 1e300]]}]
    for ascii_only in (True, False):
        signed(artifact, json.dumps(top, ensure_ascii=ascii_only).encode())
        assert read_artifact(artifact).manifest.layers == tuple(top["layers"])


def test_version_zero_is_refused(artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    struct.pack_into("<I", data, 8, 0)
    artifact.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"version from 1 to {FORMAT_VERSION}, found 0"):
        read_artifact(artifact)


@pytest.mark.parametrize("content", [b"", b"PK\3\4" * 100, b"\x08\x07\x12\x07pytorch" * 50])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.nmc").write_bytes(content)
    with pytest.raises(ArtifactError, match="is no artifact"):
        read_artifact(tmp_path / "other.nmc")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.nmc: No such file"):
        read_artifact(tmp_path / "none.nmc")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nmc")
    with pytest.raises(ArtifactError, match="expected a file"):
        read_artifact(tmp_path / "pipe.nmc")


def _set(*path: Any, to: Any) -> Edit:
    def edit(top: dict[str, Any]) -> None:
        place: Any = top
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("surprise", to=1), "unknown key 'surprise'"),
        (_set("producer", "surprise", to=1), "producer: unknown key"),
        (lambda top: top.pop("entry"), "'entry' is missing"),
        (_set("format_version", to=1), "expected format_version 2, found 1"),
        (lambda top: top.pop("prepare"), "'prepare' is missing"),
        (_set("workspace_bytes", to=True), "expected an integer, found a boolean"),
        (_set("workspace_bytes", to=1.0), "expected an integer, found a fraction"),
        (_set("workspace_bytes", to=-1), "expected an integer in 0"),
        (_set("workspace_bytes", to=1 << 63), "expected an integer in 0"),
        (_set("layers", to=["conv1"]), r"layers\[0\]: expected an object, found a string"),
        (_set("target", "cpu_features", to="avx512f"), "expected a list of strings"),
        (_set("inputs", 0, "shape", to=[1, 0]), r"inputs\[0\]: shape: expected integers in 1"),
        (_set("inputs", 0, "shape", to=[1 << 30, 1 << 30]), "elements"),
        (_set("inputs", 0, "shape", to=[1] * 17), "at most 16 dimensions"),
        (_set("inputs", 0, "dtype", to="object"), "dtype: expected one of float32"),
        (_set("inputs", 0, "name", to="x" * 5000), "at most 4096 characters"),
        (_set("inputs", 0, "name", to="\ud800"), "expected Unicode text, found '.ud800'"),
        (_set("layers", to=[{"a": ["\udfff"]}]), "expected Unicode text"),
        (_set("layers", to=[{"\udfff": 1}]), "expected Unicode text"),
        (_set("layers", to=[{"a": json.loads("[" * 20 + "]" * 20)}]), "at most 18 deep"),
        (_set("layers", to=[{"macs": 10**30}]), "found one of 100 bits"),
        (_set("params", 0, "nbytes", to=4), "nbytes: expected 120"),
        (_set("params", 1, "offset", to=0), "'conv1.bias': expected offset 128, found 0"),
        (
            _set("params", 1, "name", to="conv1.weight"),
            "params holds the name 'conv1.weight' twice",
        ),
        (lambda top: top["params"].pop(), "expected the weights to end at byte 136"),
        (_set("sections", 1, "offset", to=64), "'weights': expected offset 128, found 64"),
        (_set("sections", 1, "length", to=1 << 62), "expected its sections to end at"),
        (_set("sections", 0, "sha256", to=[]), "'library': expected 1 digests"),
        (_set("sections", 0, "sha256", to=["0" * 64]), "'library' does not match"),
        (lambda top: top["sections"].pop(), "expected the sections library, weights"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(artifact: Path, edit: Edit, message: str) -> None:
    top = stored(artifact)
    edit(top)
    signed(artifact, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_a_manifest_put_back_unchanged_is_accepted(artifact: Path) -> None:
    # The counterpart of the test above: its refusals are not for a badly rebuilt file.
    signed(artifact, json.dumps(stored(artifact), indent=1).encode())
    assert read_artifact(artifact).manifest.entry == "main"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"entry":"a","entry":"b"}', "duplicate key 'entry'"),
        (b'{"workspace_bytes":NaN}', "NaN is not a JSON number"),
        (b'{"layers":[{"density":1e999}]}', "1e999 is too large for a number"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"entry":' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'"\xff"', "is not valid JSON"),
        (b"{} {}", "is not valid JSON"),
        (b"[]", "expected an object, found a list"),
    ],
)
def test_malformed_json_is_refused(artifact: Path, text: bytes, message: str) -> None:
    signed(artifact, text)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


@examples(200)
@given(text=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
))  # fmt: skip
def test_any_other_json_is_refused(tmp_path_factory: pytest.TempPathFactory, text: object) -> None:
    path = tmp_path_factory.mktemp("json") / "model.nmc"
    write_artifact(path, manifest(), LIBRARY, {})
    signed(path, json.dumps(text).encode())
    with pytest.raises(ArtifactError):
        read_artifact(path)


@pytest.mark.parametrize(
    "weight", [np.zeros(2, np.float64), np.zeros((2, 0), np.float32), np.zeros(2, ">f4")]
)
def test_weights_that_cannot_be_stored_are_named(tmp_path: Path, weight: Any) -> None:
    with pytest.raises(ArtifactError, match=r"weight 'fc\.weight': expected"):
        write_artifact(tmp_path / "m.nmc", manifest(), LIBRARY, {"fc.weight": weight})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write /proc/no/m\.nmc: No such file"):
        write_artifact("/proc/no/m.nmc", manifest(), LIBRARY, WEIGHTS)
    with pytest.raises(ArtifactError, match=r"cannot write /proc/m\.nmc"):  # also refused to root
        write_artifact("/proc/m.nmc", manifest(), LIBRARY, WEIGHTS)
    with pytest.raises(ArtifactError, match="it is a folder"):
        write_artifact(tmp_path, manifest(), LIBRARY, WEIGHTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(
    artifact: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = artifact.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_artifact(artifact, manifest(), b"another", {})
    assert artifact.read_bytes() == before
    assert list(artifact.parent.iterdir()) == [artifact]


def test_a_disk_that_fills_up_keeps_the_old_file(artifact: Path) -> None:
    # The kernel's limit on file sizes makes a real write fail midway, as a full disk does.
    code = """
import resource, sys, numpy as np
from nmcompile.errors import ArtifactError
from nmcompile.runtime import write_artifact, read_artifact
old = read_artifact(sys.argv[1]).manifest
from dataclasses import replace
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_artifact(sys.argv[1], replace(old, params=(), sections=()), b"", {"w": np.ones(10**6)
                   .astype("float32")})
except ArtifactError as error:
    print(error)
"""
    before = artifact.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "File too large" in done.stdout
    assert artifact.read_bytes() == before
    assert list(artifact.parent.iterdir()) == [artifact]


def test_the_umask_decides_the_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_artifact(tmp_path / "m.nmc", manifest(), LIBRARY, {})
    finally:
        os.umask(old)
    assert (tmp_path / "m.nmc").stat().st_mode & 0o777 == 0o640
