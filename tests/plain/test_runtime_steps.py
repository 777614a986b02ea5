"""Artifacts of several steps: written and read back, refused where they contradict themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmcompile.errors import ArtifactError
from nmcompile.runtime import Producer, TensorSpec, read_artifact, write_artifact
from nmcompile.runtime.manifest import Manifest
from nmcompile.runtime.steps import Step
from tests.plain.test_runtime_format import signed, stored
from tests.support.manifests import SHAPE, X, manifest

Edit = Callable[[dict[str, Any]], Any]
CONTENTS = {"library.0": b"\x7fELF one", "onnx.1": b"onnx", "library.2": b"\x7fELF two" * 20}
WEIGHTS = {name: np.full(SHAPE, i, np.float32) for i, name in enumerate("abc")}
STEPS = (
    Step("library", "library.0", ("x",), ("h", "side"), "main", "", 2, {"nodes": 3}),
    Step("onnx", "onnx.1", ("h", "w"), ("count", "m")),
    Step("library", "library.2", ("m", "x"), ("y",), "start", "prepare", 1),
)


def stepwise() -> Manifest:
    return replace(
        manifest(
            inputs=(X, TensorSpec("w", (2,), "float64")),
            outputs=(
                TensorSpec("y", SHAPE, "float32"),
                TensorSpec("count", (-1, 3), "uint64"),
                TensorSpec("side", SHAPE, "float32"),
            ),
        ),
        producer=Producer("0.1.0", "0.27.0", "0.1.14", "1.32.0"),
        entry="",
        steps=STEPS,
        values=(TensorSpec("h", (4,), "int8"), TensorSpec("m", SHAPE, "float32")),
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.nmc"
    write_artifact(path, stepwise(), CONTENTS, WEIGHTS)
    return path


def test_what_is_written_is_read_back(artifact: Path) -> None:
    found = read_artifact(artifact)
    assert {name: bytes(content) for name, content in found.parts.items()} == CONTENTS
    assert found.manifest.steps == found.manifest.plan == STEPS
    for name in ("producer", "inputs", "outputs", "values", "layers", "calls", "target"):
        assert getattr(found.manifest, name) == getattr(stepwise(), name), name
    for array, expected in zip(found.params, WEIGHTS.values(), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.ctypes.data % 64 == 0


def test_only_models_with_steps_are_of_version_three(artifact: Path, tmp_path: Path) -> None:
    write_artifact(tmp_path / "whole.nmc", manifest(), b"library", WEIGHTS)
    for path, version in ((artifact, 3), (tmp_path / "whole.nmc", 2)):
        assert path.read_bytes()[8:12] == bytes([version, 0, 0, 0])
        assert stored(path)["format_version"] == version
    whole = stored(tmp_path / "whole.nmc")
    assert {"steps", "values"}.isdisjoint(whole)
    assert set(whole["producer"]) == {"nmcompile", "tvm", "tvm_ffi"}
    assert set(whole["inputs"][0]) == {"name", "shape", "dtype"}


def test_the_plan_of_one_library_is_itself(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(prepare="prepare"), b"library", WEIGHTS)
    (step,) = read_artifact(tmp_path / "m.nmc").manifest.plan
    assert step == Step("library", "library", ("x",), ("y",), "main", "prepare", 3)


def test_any_rank_is_null_in_the_file(tmp_path: Path) -> None:
    spec = TensorSpec("count", (), "uint64", any_shape=True)
    outputs = [spec if other.name == "count" else other for other in stepwise().outputs]
    write_artifact(
        tmp_path / "m.nmc", replace(stepwise(), outputs=tuple(outputs)), CONTENTS, WEIGHTS
    )
    assert stored(tmp_path / "m.nmc")["outputs"][1]["shape"] is None
    assert read_artifact(tmp_path / "m.nmc").manifest.outputs[1] == spec


@pytest.mark.parametrize(
    ("spec", "shape", "fits"),
    [
        (TensorSpec("y", (2, 3), "float32"), (2, 3), True),
        (TensorSpec("y", (2, 3), "float32"), (2, 4), False),
        (TensorSpec("y", (2, -1), "float32"), (2, 0), True),
        (TensorSpec("y", (2, -1), "float32"), (3, 7), False),
        (TensorSpec("y", (-1,), "float32"), (), False),
        (TensorSpec("y", (), "float32", any_shape=True), (1, 2, 3), True),
    ],
)
def test_a_shape_fits_where_its_fixed_dimensions_do(
    spec: TensorSpec, shape: tuple[int, ...], fits: bool
) -> None:
    assert spec.fits(shape) == fits


def _step(index: int, **changes: Any) -> Edit:
    return lambda top: top["steps"][index].update(changes)


def _spec(table: str, index: int, **changes: Any) -> Edit:
    return lambda top: top[table][index].update(changes)


def _twice(top: dict[str, Any]) -> None:
    top["steps"].append(top["steps"][1])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda top: top.update(entry="main"), "unknown key 'entry'"),
        (lambda top: top.pop("steps"), "'steps' is missing"),
        (lambda top: top.pop("values"), "'values' is missing"),
        (lambda top: top["producer"].pop("onnxruntime"), "'onnxruntime' is missing"),
        (lambda top: top.update(steps=[]), "expected steps, at least one of them of kind 'onnx'"),
        (lambda top: top["steps"].pop(1), "at least one of them of kind 'onnx', found 2"),
        (_step(1, surprise=1), r"steps\[1\]: unknown key 'surprise'"),
        (_step(1, kind="torch"), r"steps\[1\]: kind: expected one of library, onnx"),
        (_step(1, about=[]), "about: expected an object, found a list"),
        (_step(1, inputs=["h", "h"]), r"steps\[1\]: inputs holds the name 'h' twice"),
        (_step(1, inputs=["h", "nowhere"]), "made by earlier steps, found 'nowhere'"),
        (_step(0, inputs=["m"]), r"steps\[0\]: expected inputs .* found 'm'"),  # a circle
        (_step(0, inputs=["h"]), r"steps\[0\]: expected inputs .* found 'h'"),
        (_step(1, outputs=[]), r"steps\[1\]: expected at least one output"),
        (_step(1, outputs=["count", "m", "m"]), "expected new names for outputs, found 'm'"),
        (_step(2, outputs=["h"]), "expected new names for outputs, found 'h'"),
        (_step(2, outputs=["x"]), "expected new names for outputs, found 'x'"),
        (_step(2, outputs=["z"]), "expected a step that makes the output 'y', found none"),
        (_step(0, entry=""), "expected the entry function of a library"),
        (_step(1, entry="main"), "expected no entry, prepare or params for onnxruntime"),
        (_step(1, params=1), "expected no entry, prepare or params for onnxruntime"),
        (_step(2, params=2), "expected params to be the 4 that the steps take, found 3"),
        (_step(2, params=0), "expected params to be the 2 that the steps take, found 3"),
        (_step(2, section="onnx.1"), "the sections of steps holds the name 'onnx.1' twice"),
        (_step(2, section="weights"), "the sections of steps holds the name 'weights' twice"),
        (_step(2, section="other"), "expected the sections library.0, onnx.1, other, weights"),
        (_twice, "the sections of steps holds the name 'onnx.1' twice"),
        (_spec("values", 0, name="m"), "values holds the name 'm' twice"),
        (_spec("values", 0, name="y"), "values holds 'y', which is one of the outputs"),
        (_spec("values", 0, name="x"), "values holds 'x', which is one of the inputs"),
        (_spec("values", 0, name="other"), "'other', which no library reads or makes"),
        (lambda top: top["values"].pop(), "expected the shape of 'm', which a library reads"),
        (_spec("values", 0, shape=[-1]), r"values\[0\]: shape: expected integers in 1"),
        (_spec("values", 0, dtype="float64"), r"values\[0\]: dtype: expected one of float32"),
        (_spec("inputs", 0, shape=[-1, 16]), r"inputs\[0\]: shape: expected integers in 1"),
        (_spec("inputs", 0, shape=None), r"inputs\[0\]: shape: expected a list"),
        (_spec("inputs", 0, dtype="float64"), "of a dtype that libraries take for 'x'"),
        (_spec("outputs", 0, shape=[-1, 16]), "expected a fixed shape for 'y'"),
        (_spec("outputs", 0, shape=None), "expected a fixed shape for 'y'"),
        (_spec("outputs", 1, shape=[-2, 3]), r"expected integers in 1\.\.\d+, or -1, found -2"),
        (_spec("outputs", 1, shape=[0, 3]), "or -1, found 0"),
        (_spec("outputs", 1, dtype="string"), r"outputs\[1\]: dtype: expected one of float32"),
        (lambda top: top["sections"].pop(1), "expected the sections library.0, onnx.1"),
        (lambda top: top["sections"].reverse(), "expected the sections library.0, onnx.1"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(artifact: Path, edit: Edit, message: str) -> None:
    top = stored(artifact)
    edit(top)
    signed(artifact, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_a_manifest_put_back_unchanged_is_accepted(artifact: Path) -> None:
    signed(artifact, json.dumps(stored(artifact), indent=1).encode())
    assert read_artifact(artifact).manifest.steps == STEPS


def test_an_output_may_be_an_input(artifact: Path) -> None:
    top = stored(artifact)
    top["outputs"].append(top["inputs"][1])
    signed(artifact, json.dumps(top).encode())
    assert read_artifact(artifact).manifest.outputs[-1] == TensorSpec("w", (2,), "float64")


def test_an_output_that_is_an_input_is_described_alike(artifact: Path) -> None:
    top = stored(artifact)
    top["outputs"].append(top["inputs"][1] | {"shape": [3]})
    signed(artifact, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match="expected the output 'w' to be as the input"):
        read_artifact(artifact)


def test_a_flipped_bit_in_any_section_is_refused(artifact: Path) -> None:
    data = artifact.read_bytes()
    for content in CONTENTS.values():
        changed = bytearray(data)
        changed[data.index(content) + len(content) - 1] ^= 1
        artifact.write_bytes(changed)
        with pytest.raises(ArtifactError, match="does not match"):
            read_artifact(artifact)
