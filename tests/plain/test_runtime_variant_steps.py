"""Artifacts of several shapes and several steps: written and read back, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmcompile.errors import ArtifactError, InputError
from nmcompile.runtime import Manifest, Producer, TensorSpec, Variant, read_artifact, write_artifact
from nmcompile.runtime.arguments import Arguments
from nmcompile.runtime.steps import Step
from nmcompile.runtime.variants import Part
from tests.plain.test_runtime_format import signed, stored
from tests.support.manifests import manifest

Edit = Callable[[dict[str, Any]], Any]
CONTENTS = {
    "library.0": b"\x7fELF one",
    "onnx.1": b"onnx",
    "library.2": b"\x7fELF two" * 20,
    "onnx.1.1": b"onnx of the other shape",
}
WEIGHTS = {name: np.full((3, 4), i, np.float32) for i, name in enumerate("abc")}


def variant(batch: int, rest: str, weights: tuple[int, ...] = (0, 1)) -> Variant:
    return Variant(
        "",
        (TensorSpec("x", (batch, 4), "float32"), TensorSpec("w", (2,), "float64")),
        (TensorSpec("y", (batch, 4), "float32"), TensorSpec("n", (-1, 3), "int64")),
        (),
        workspace_bytes=batch,
        steps=(
            Step("library", "library.0", ("x",), ("h",), f"one_{batch}", "", 2, {"n": 3}, weights),
            Step("onnx", rest, ("h", "w"), ("m", "n"), weights=()),
            Step("library", "library.2", ("m",), ("y",), "two", "prepare", 1, {}, (7,)),
        ),
        values=(TensorSpec("h", (batch, 4), "int8"), TensorSpec("m", (batch, 4), "float32")),
    )


def both(*variants: Variant) -> Manifest:
    first = variants[0]
    return replace(
        manifest(first.inputs, first.outputs, entry=""),
        producer=Producer("0.1.0", "0.27.0", "0.1.14", "1.32.0"),
        workspace_bytes=first.workspace_bytes,
        variants=variants,
    )


WRITTEN = both(variant(1, "onnx.1"), variant(8, "onnx.1.1", (1,)))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.nmc"
    write_artifact(path, WRITTEN, CONTENTS, WEIGHTS)
    return path


def test_what_is_written_is_read_back(artifact: Path) -> None:
    found = read_artifact(artifact)
    assert {name: bytes(content) for name, content in found.parts.items()} == CONTENTS
    assert [section.name for section in found.manifest.sections] == [*CONTENTS, "weights"]
    assert replace(found.manifest, params=(), sections=()) == WRITTEN
    assert found.manifest.forms == found.manifest.variants
    assert found.manifest.plan == found.manifest.variants[0].steps
    assert found.manifest.needs_onnxruntime
    assert artifact.read_bytes()[8:12] == bytes([5, 0, 0, 0])
    top = stored(artifact)
    assert {"inputs", "entry", "prepare", "calls", "steps", "values"}.isdisjoint(top)
    assert set(top["variants"][0]) == {
        "inputs", "outputs", "calls", "workspace_bytes", "steps", "values",
    }  # fmt: skip
    for array, expected in zip(found.params, WEIGHTS.values(), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_what_is_the_same_for_all_shapes_is_there_once(tmp_path: Path) -> None:
    same = both(variant(1, "onnx.1"), variant(8, "onnx.1"))
    parts = {name: content for name, content in CONTENTS.items() if name != "onnx.1.1"}
    write_artifact(tmp_path / "m.nmc", same, parts, WEIGHTS)
    assert list(read_artifact(tmp_path / "m.nmc").parts) == ["library.0", "onnx.1", "library.2"]


def _second(**changes: Any) -> Edit:
    return lambda top: top["variants"][1].update(changes)


def _step(index: int, **changes: Any) -> Edit:
    return lambda top: top["variants"][1]["steps"][index].update(changes)


def _spec(table: str, index: int, **changes: Any) -> Edit:
    return lambda top: top["variants"][1][table][index].update(changes)


def _shared(top: dict[str, Any]) -> dict[str, Any]:
    """The second shape's part of onnxruntime's, in the section of the first's."""
    step: dict[str, Any] = top["variants"][1]["steps"][1]
    step["section"] = "onnx.1"
    return step


STEP = r"variants\[1\]: steps"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda top: top.update(variants=[]), "expected variants, found none"),
        (lambda top: top["variants"].pop(), "expected at least two variants, found 1"),
        (lambda top: top.update(steps=[]), "unknown key 'steps'"),
        (lambda top: top.update(prepare=""), "unknown key 'prepare'"),
        (lambda top: top["producer"].pop("onnxruntime"), "'onnxruntime' is missing"),
        (_second(entry="main"), r"variants\[1\]: unknown key 'entry'"),
        (_second(weights=[]), r"variants\[1\]: unknown key 'weights'"),
        (_second(steps=[]), r"variants\[1\]: expected steps, at least one of them of kind 'onnx'"),
        (lambda top: top["variants"][1].pop("values"), r"variants\[1\]: 'values' is missing"),
        (lambda top: top["variants"][1]["steps"][0].pop("weights"), "'weights' is missing"),
        (_step(0, weights=None), rf"{STEP}\[0\]: weights: expected a list of integers, found null"),
        (_step(0, weights=[2]), rf"{STEP}\[0\]: weights: expected positions below 2, found 2"),
        (_step(0, weights=[-1]), "weights: expected integers in 0.."),
        (_step(1, weights=[0]), rf"{STEP}\[1\]: weights: expected none for onnxruntime, found 1"),
        (_step(0, params=1), rf"{STEP}\[0\]: params: expected 2 as in the variant before"),
        (_step(2, prepare=""), rf"{STEP}\[2\]: prepare: expected 'prepare' as in the variant"),
        (_step(0, entry=""), rf"{STEP}\[0\]: expected the entry function of a library"),
        (_step(0, section="library.2"), "the sections of steps holds the name 'library.2' twice"),
        (_step(1, section="other"), "expected the sections library.0, onnx.1, library.2, other"),
        (_step(0, section="onnx.1"), rf"{STEP}\[0\]: kind: expected 'onnx' as in the variant"),
        (
            lambda top: _shared(top).update(outputs=["n", "m"]),
            rf"{STEP}\[1\]: outputs: expected \('m', 'n'\) as in the variant before",
        ),
        (
            lambda top: _shared(top).update(inputs=["h"]),
            rf"{STEP}\[1\]: inputs: expected \('h', 'w'\) as in the variant before that has the "
            r"section 'onnx\.1', too, found \('h',\)",
        ),
        (_shared, "expected the sections library.0, onnx.1, library.2, weights"),
        (_step(1, inputs=["h", "no"]), rf"{STEP}\[1\]: expected inputs that are the model's"),
        (_step(2, outputs=["z"]), r"variants\[1\]: expected a step that makes the output 'y'"),
        (_spec("values", 0, name="m"), r"variants\[1\]: values holds the name 'm' twice"),
        (_spec("values", 0, shape=[-1]), r"values\[0\]: shape: expected integers in 1"),
        (_spec("outputs", 0, shape=[-1, 4]), r"variants\[1\]: expected a fixed shape for 'y'"),
        (_spec("outputs", 1, dtype="int32"), r"outputs: expected those of variants\[0\]"),
        (_spec("inputs", 0, shape=[1, 4]), r"expected other shapes than those of variants\[0\]"),
        (lambda top: top.update(batched=["x"]), "expected one batch in front of the batched"),
        (
            lambda top: [each["steps"][2].update(params=0) for each in top["variants"]],
            "expected params to be the 2 that the steps take, found 3",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(artifact: Path, edit: Edit, message: str) -> None:
    top = stored(artifact)
    edit(top)
    signed(artifact, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_a_manifest_put_back_unchanged_is_accepted(artifact: Path) -> None:
    signed(artifact, json.dumps(stored(artifact), indent=1).encode())
    assert replace(read_artifact(artifact).manifest, params=(), sections=()) == WRITTEN


def test_steps_for_some_shapes_only_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = replace(WRITTEN, variants=(WRITTEN.variants[0], replace(WRITTEN.variants[1], steps=())))
    with pytest.raises(ArtifactError, match=r"variants\[1\]: expected steps, at least one of them"):
        write_artifact(tmp_path / "m.nmc", one, CONTENTS | {"library": b""}, WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_fits_no_shape_is_told_those_there_are() -> None:
    arguments = Arguments(Path("m.nmc"), WRITTEN)
    x, w = np.zeros((9, 4), np.float32), np.zeros(2)
    with pytest.raises(InputError, match="compiled for, x 1x4, w 2 or x 8x4, w 2, found x 9x4"):
        arguments.parts([x, w])
    assert arguments.parts([x[:8], w]) == [Part(1)]
