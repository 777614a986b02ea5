"""Artifacts of several shapes: written and read back, refused, and which shapes run a batch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import nmcompile
from nmcompile.cli.options import Shape, shape_sets_of, shapes_of
from nmcompile.errors import ArtifactError, InputError, ShapeError, TargetError
from nmcompile.runtime import Manifest, TensorSpec, Variant, read_artifact, write_artifact
from nmcompile.runtime.arguments import Arguments
from nmcompile.runtime.steps import binding
from nmcompile.runtime.variants import Part, find_parts, sum_of
from nmcompile.shape_sets import check_sets, sets_of
from nmcompile.targets import find_target
from tests.plain.test_runtime_format import signed, stored
from tests.support.examples import examples
from tests.support.manifests import manifest

WEIGHTS = {name: np.full((3, 4), i, np.float32) for i, name in enumerate("abc")}
Edit = Callable[[dict[str, Any]], Any]


def variant(batch: int, size: int = 8, weights: tuple[int, ...] = (0, 2)) -> Variant:
    return Variant(
        f"main_{batch}_{size}",
        (TensorSpec("x", (batch, 3, size), "float32"), TensorSpec("k", (4,), "float32")),
        (TensorSpec("y", (batch, 10), "float32"),),
        weights,
        workspace_bytes=batch,
    )


def several(*variants: Variant, batched: tuple[str, ...] = ("x",)) -> Manifest:
    first = variants[0]
    return replace(
        manifest(first.inputs, first.outputs, entry=first.entry),
        workspace_bytes=first.workspace_bytes,
        variants=variants,
        batched=batched,
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.nmc"
    write_artifact(path, several(variant(1), variant(8, weights=(1,))), b"library", WEIGHTS)
    return path


def test_what_is_written_is_read_back(artifact: Path) -> None:
    found = read_artifact(artifact).manifest
    wanted = several(variant(1), variant(8, weights=(1,)))
    assert replace(found, params=(), sections=()) == wanted
    assert found.forms == found.variants
    assert artifact.read_bytes()[8:12] == bytes([4, 0, 0, 0])
    assert {"inputs", "outputs", "entry", "calls", "workspace_bytes"}.isdisjoint(stored(artifact))


def test_a_model_of_one_shape_is_its_only_form(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.nmc", manifest(), b"library", WEIGHTS)
    found = read_artifact(tmp_path / "m.nmc").manifest
    (form,) = found.forms
    assert (form.inputs, form.outputs, form.entry) == (found.inputs, found.outputs, "main")
    assert form.weights == (0, 1, 2)
    assert {"variants", "batched"}.isdisjoint(stored(tmp_path / "m.nmc"))


def _second(**changes: Any) -> Edit:
    return lambda top: top["variants"][1].update(changes)


def _output(**changes: Any) -> Edit:
    return lambda top: top["variants"][1]["outputs"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda top: top.update(variants=[]), "expected variants, found none"),
        (lambda top: top["variants"].pop(), "expected at least two variants, found 1"),
        (lambda top: top["variants"].append(top["variants"][0]), "expected other shapes than"),
        (_second(weights=[3]), r"variants\[1\]: weights: expected positions below 3, found 3"),
        (
            _second(entry="main_w4f8b3d1a"),
            r"variants\[1\]: weights: expected those that 'main_w4f8",
        ),
        (_second(weights=[-1]), "weights: expected integers in 0.."),
        (_second(weights=[True]), "weights: expected integers in 0.."),
        (_second(inputs=[]), r"variants\[1\]: inputs: expected those of variants\[0\]"),
        (_output(name="z"), r"variants\[1\]: outputs: expected those of variants\[0\]"),
        (_output(dtype="int8"), r"variants\[1\]: outputs: expected those of variants\[0\]"),
        (_output(shape=[9, 10]), "expected one batch in front of the batched inputs"),
        (_output(shape=[]), "expected one batch in front of the batched inputs"),
        (lambda top: top.update(batched=["z"]), "batched holds 'z', which is no input"),
        (lambda top: top.update(batched=["k"]), "expected one batch in front of the batched"),
        (lambda top: top.update(batched=["x", "x"]), "batched holds the name 'x' twice"),
        (lambda top: top.update(entry="main"), "unknown key 'entry'"),
        (lambda top: top.update(steps=[]), "unknown key 'steps'"),
    ],
)
def test_what_contradicts_itself_is_refused(artifact: Path, edit: Edit, message: str) -> None:
    top = stored(artifact)
    edit(top)
    signed(artifact, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match=message):
        read_artifact(artifact)


def test_a_name_says_which_weights_a_function_takes(tmp_path: Path) -> None:
    """Those of one shape could change places, and the library would take them."""
    taken = (2, 0)
    named = replace(variant(8, weights=taken), entry=f"main_{binding(taken)}")
    path = tmp_path / "m.nmc"
    write_artifact(path, several(variant(1), named), b"library", WEIGHTS)
    assert read_artifact(path).manifest.variants[1].weights == taken
    top = stored(path)
    top["variants"][1]["weights"] = [0, 2]
    signed(path, json.dumps(top).encode())
    with pytest.raises(ArtifactError, match="in the order in which it takes them, found \\[0, 2"):
        read_artifact(path)


def test_a_batch_takes_no_part_where_images_are_not_by_themselves() -> None:
    variants = [variant(1), variant(8)]
    assert find_parts(variants, ["x"], [(11, 3, 8), (4,)]) == [
        Part(1, 0, 8), Part(0, 8, 9), Part(0, 9, 10), Part(0, 10, 11),
    ]  # fmt: skip
    assert find_parts(variants, [], [(11, 3, 8), (4,)]) == []
    assert find_parts(variants, [], [(8, 3, 8), (4,)]) == [Part(1)]
    assert find_parts(variants, ["x"], [(11, 3, 9), (4,)]) == []
    assert find_parts(variants, ["x"], [(11, 3, 8), (5,)]) == []
    assert find_parts(variants, ["x"], [(11, 3), (4,)]) == []
    assert find_parts(variants, ["x"], [(0, 3, 8), (4,)]) == []


def test_parts_are_of_the_same_size_otherwise() -> None:
    variants = [variant(1, 8), variant(4, 8), variant(2, 6)]
    assert find_parts(variants, ["x"], [(6, 3, 6), (4,)]) == [
        Part(2, 0, 2), Part(2, 2, 4), Part(2, 4, 6),
    ]  # fmt: skip
    assert find_parts(variants, ["x"], [(3, 3, 6), (4,)]) == []


@examples(200)
@given(st.sets(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 400))
def test_the_fewest_sizes_add_up(sizes: set[int], total: int) -> None:
    fewest = {0: 0}
    for amount in range(1, total + 1):
        counts = [fewest[amount - size] for size in sizes if amount - size in fewest]
        if counts:
            fewest[amount] = 1 + min(counts)
    found = sum_of(total, tuple(sorted(sizes)))
    if total not in fewest:
        assert found == ()
        return
    assert sum(found) == total and set(found) <= sizes
    assert len(found) == fewest[total]
    assert list(found) == sorted(found, reverse=True)


def test_what_fits_none_is_told_the_shapes() -> None:
    arguments = Arguments(Path("m.nmc"), several(variant(1), variant(8)))
    values = [np.zeros((8, 3, 9), np.float32), np.zeros(4, np.float32)]
    with pytest.raises(InputError) as caught:
        arguments.parts(values)
    assert str(caught.value) == (
        "expected inputs of a shape that m.nmc was compiled for, x 1x3x8, k 4 or x 8x3x8, k 4, or "
        "a batch that is a sum of theirs, found x 8x3x9, k 4; compile the model for this shape, too"
    )
    with pytest.raises(InputError, match="in 2 parts, and is profiled with such"):
        arguments.whole([np.zeros((9, 3, 8), np.float32), values[1]])
    assert arguments.whole([np.zeros((8, 3, 8), np.float32), values[1]]) == Part(1)


def test_shapes_of_one_input_are_sets_of_shapes() -> None:
    given_ = [Shape("x", (1, 3)), Shape("k", (4,)), Shape("x", (8, 3))]
    assert shape_sets_of(given_) == [{"x": (1, 3), "k": (4,)}, {"x": (8, 3), "k": (4,)}]
    assert shape_sets_of([*given_, Shape("k", (5,))])[1] == {"x": (8, 3), "k": (5,)}
    assert shape_sets_of(None) == [{}]
    assert shapes_of(given_[:2]) == {"x": (1, 3), "k": (4,)}
    with pytest.raises(typer.BadParameter, match="expected 3 of k, as of x, or 1 for all of them"):
        shape_sets_of([*given_, Shape("k", (5,)), Shape("x", (9, 3))])
    with pytest.raises(typer.BadParameter, match="only `nmc compile` takes several shapes"):
        shapes_of(given_)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "expected at least one mapping"),
        ([{"x": (1, 2)}, (2, 2)], r"shapes\[1\]: expected a mapping from input names"),
        ([{"x": (1, 2)}, {"x": [1, 2]}], r"shapes\[1\]: x=1,2 is there twice"),
    ],
)
def test_sets_that_are_none_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        sets_of(shapes)


def test_what_takes_one_shape_says_so() -> None:
    sets = sets_of([{"x": (1, 3)}, {"x": (8, 3)}])
    with pytest.raises(TargetError, match="sm_80 takes one shape for an artifact, found 2 shapes"):
        check_sets(sets, find_target("sm_80"))
    check_sets(sets[:1], find_target("sm_80"))
    check_sets(sets, find_target("avx512"))
    with pytest.raises(ShapeError, match="is there twice"):
        nmcompile.compile("m.onnx", output="m.nmc", shapes=[{"x": (1, 3)}, {"x": (1, 3)}])
