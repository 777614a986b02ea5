"""Other weights for an artifact: as compiled anew, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

import nmcompile
from nmcompile import runtime
from nmcompile.cli.app import app
from nmcompile.errors import (
    ArtifactError,
    InputError,
    ModelError,
    NmcompileError,
    PatternError,
    ShapeError,
)
from nmcompile.kernels import objects
from nmcompile.sparsity import parse_pattern, project
from tests.support.examples import examples
from tests.support.mixed_models import conv, model, node, reader, weight
from tests.support.tiny_models import example, tiny_net

Array = npt.NDArray[Any]
FLOAT = onnx.TensorProto.FLOAT


def two_layers(
    pattern: str = "dense", seed: int = 0, alpha: float = 0.5, **changed: Array
) -> onnx.ModelProto:
    """A convolution with the pattern, ELU, a residual-free 1x1 behind it, and a scale."""
    first = project(weight(32, 8, 3, 3, seed=seed), parse_pattern(pattern), _density(pattern))
    weights = {
        "w": first,
        "v": weight(8, 32, 1, 1, seed=seed + 1),
        "b": weight(8, 1, seed=seed + 2).reshape(8),
        **changed,
    }
    nodes = [
        conv("x", "a", "w", pads=[1] * 4),
        node("Elu", ["a"], ["e"], alpha=alpha),
        node("Conv", ["e", "v", "b"], ["y"], name="second"),
    ]
    return model(nodes, weights, [("y", FLOAT, None)])


def _density(pattern: str) -> float | None:
    return 0.5 if pattern in ("1x16", "unstructured") else None


def no_code(*_: Any, **__: Any) -> bytes:
    raise AssertionError("code was generated")


def updated(
    old: Any, new: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[bytes, bytes]:
    """The artifact of `old` with the weights of `new`, and what compiling `new` gives."""
    nmcompile.compile(old, output=folder / "old.nmc", **options)
    wanted = nmcompile.compile(new, output=folder / "new.nmc", **options)
    with monkeypatch.context() as patched:
        patched.setattr(objects, "_build", no_code)
        result = nmcompile.update(folder / "old.nmc", new)
    assert result.path == folder / "old.nmc"
    assert result.digest == wanted.digest
    assert sorted(path.name for path in folder.iterdir()) == ["new.nmc", "old.nmc"]
    return result.path.read_bytes(), (folder / "new.nmc").read_bytes()


@pytest.mark.parametrize("pattern", ["dense", "2:4", "1x16", "unstructured"])
def test_it_is_what_compiling_gives(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_layers(pattern), two_layers(pattern, seed=7)
    if pattern == "unstructured":  # lists end where they did
        (kept,) = (t for t in old.graph.initializer if t.name == "w")
        new = two_layers(seed=7, w=numpy_helper.to_array(kept) * np.float32(1.5))
    found, wanted = updated(old, new, tmp_path, monkeypatch)
    assert found == wanted


@pytest.mark.parametrize(
    ("target", "options"),
    [("avx512_bf16", {"precision": "bf16"}), ("avx512", {"pattern": "dense"})],
)
def test_it_finds_out_how_the_artifact_was_compiled(
    target: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two_layers("2:4"), two_layers("2:4", seed=7)
    found, wanted = updated(old, new, tmp_path, monkeypatch, target=target, **options)
    assert found == wanted


def test_parts_of_onnxruntime_get_their_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = reader()
    for tensor in new.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(0.5), tensor.name))
    found, wanted = updated(reader(), new, tmp_path, monkeypatch)
    assert found == wanted


def open_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.HasField("shape") and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


SHAPES = [{"x": (1, 8, 16, 16)}, {"x": (3, 8, 16, 16)}]


@pytest.mark.isa("avx512f")
@pytest.mark.parametrize("pattern", [pytest.param("2:4", marks=pytest.mark.long), "1x16"])
def test_weights_of_several_shapes_are_packed_for_all_of_them(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = open_batch(two_layers(pattern)), open_batch(two_layers(pattern, seed=7))
    found, wanted = updated(old, new, tmp_path, monkeypatch, shapes=SHAPES)
    assert found == wanted
    session = runtime.load(tmp_path / "old.nmc", threads=1)
    for batch in (1, 3, 4):
        x = np.random.default_rng(batch).standard_normal((batch, 8, 16, 16), np.float32)
        (made,) = session.run(x).values()
        (expected,) = ReferenceEvaluator(new).run(None, {"x": x})
        np.testing.assert_allclose(made, np.asarray(expected), rtol=1e-4, atol=1e-4)


def test_counts_of_several_shapes_that_do_not_fit_are_refused_by_layer(tmp_path: Path) -> None:
    weights = weight(32, 8, 3, 3)
    thin, thinner = (
        open_batch(two_layers(w=project(weights, parse_pattern("unstructured"), density)))
        for density in (0.3, 0.25)
    )
    path = tmp_path / "out.nmc"
    nmcompile.compile(thin, output=path, shapes=SHAPES)
    before = path.read_bytes()
    with pytest.raises(NmcompileError, match=r"layer conv_a: expected packed weights"):
        nmcompile.update(path, thinner)
    with pytest.raises(InputError, match="found example inputs, which are of one"):
        nmcompile.update(path, thin, example_inputs=(np.zeros((1, 8, 16, 16), np.float32),))
    assert path.read_bytes() == before


def test_a_torch_model_needs_no_example(tmp_path: Path) -> None:
    net = tiny_net("2:4").eval()
    nmcompile.compile(net, output=tmp_path / "net.nmc", example_inputs=(example(),))
    before = (tmp_path / "net.nmc").read_bytes()
    net.head.weight.data *= 2
    wanted = nmcompile.compile(net, output=tmp_path / "new.nmc", example_inputs=(example(),))
    result = nmcompile.update(tmp_path / "net.nmc", net, output=tmp_path / "out.nmc")
    assert result.digest == wanted.digest
    assert (tmp_path / "net.nmc").read_bytes() == before


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two_layers("2:4")`, compiled."""
    path = tmp_path_factory.mktemp("sparse") / "sparse.nmc"
    nmcompile.compile(two_layers("2:4"), output=path)
    return path


REFUSALS: dict[str, tuple[Callable[[], onnx.ModelProto], type[NmcompileError], str]] = {
    "pattern": (
        lambda: two_layers(seed=3),
        PatternError,
        r"layer conv_a: expected a weight that holds 2:4, .* found dense with 100.0%",
    ),
    "shape": (
        lambda: two_layers("2:4", v=weight(24, 32, 1, 1), b=weight(24, 1).reshape(24)),
        ShapeError,
        r"layer second: expected a weight of shape \(8, 32, 1, 1\).*, found \(24, 32, 1, 1\)",
    ),
    "number": (
        lambda: two_layers("2:4", alpha=0.25),
        ModelError,
        "is not the one that .* was compiled from: .*found other operators, numbers",
    ),
    "graph": (
        lambda: model([conv("x", "y", "w", pads=[1] * 4)], {"w": weight(8, 8, 3, 3)},
                      [("y", FLOAT, None)]),
        ModelError,
        "found no layer conv_a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_by_name(case: str, sparse: Path) -> None:
    make, error, message = REFUSALS[case]
    before = sparse.read_bytes()
    with pytest.raises(error, match=message):
        nmcompile.update(sparse, make())
    assert sparse.read_bytes() == before
    assert [path.name for path in sparse.parent.iterdir()] == [sparse.name]


def test_lists_of_another_length_are_refused_by_layer(tmp_path: Path) -> None:
    weights = weight(32, 8, 3, 3)
    thin, thinner = (
        project(weights, parse_pattern("unstructured"), density) for density in (0.3, 0.25)
    )
    path = tmp_path / "out.nmc"
    nmcompile.compile(two_layers(w=thin), output=path)
    with pytest.raises(NmcompileError, match=r"conv_a.*expected packed weights .* of shape"):
        nmcompile.update(path, two_layers(w=thinner))


def test_an_artifact_of_another_version_is_refused(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmcompile.updating.VERSION", "99.0")
    with pytest.raises(ArtifactError, match=r"was written by nmcompile .*; expected 99\.0"):
        nmcompile.update(sparse, two_layers("2:4"))


def test_the_command_replaces_the_file(sparse: Path, tmp_path: Path) -> None:
    path, new = tmp_path / "out.nmc", tmp_path / "new.onnx"
    path.write_bytes(sparse.read_bytes())
    onnx.save(two_layers("2:4", seed=9), new)
    result = CliRunner().invoke(app, ["update", str(path), str(new), "--json"])
    assert result.exit_code == 0, result.output
    wanted = nmcompile.compile(new, output=tmp_path / "wanted.nmc")
    assert json.loads(result.stdout)["digest"] == wanted.digest
    assert path.read_bytes() == wanted.path.read_bytes()


@examples(4, 50)
@given(
    st.sampled_from(["dense", "2:4", "1:4", "1x16", "unstructured"]),
    st.sampled_from(["dense", "2:4", "1:4", "1x16", "unstructured"]),
    st.integers(0, 2),
)
def test_it_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, old: str, new: str, other: int
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    nmcompile.compile(two_layers(old), output=folder / "old.nmc")
    wanted = nmcompile.compile(two_layers(new, other), output=folder / "new.nmc")
    try:
        result = nmcompile.update(folder / "old.nmc", two_layers(new, other))
    except PatternError as error:
        assert old != new or old == "unstructured"
        assert "layer conv_a: expected" in str(error)
        return
    if old == new:
        assert result.digest == wanted.digest


@pytest.mark.isa("avx512f")
def test_an_updated_artifact_computes_the_new_model(tmp_path: Path) -> None:
    old, new = tiny_net("2:4").eval(), tiny_net("2:4").eval()
    new.head.weight.data *= -2
    x = example()
    nmcompile.compile(old, output=tmp_path / "net.nmc", example_inputs=(x,))
    nmcompile.update(tmp_path / "net.nmc", new)
    (y,) = nmcompile.runtime.load(tmp_path / "net.nmc").run({"x": x.numpy()}).values()
    np.testing.assert_allclose(y, new(x).detach().numpy(), rtol=1e-4, atol=1e-4)
