"""Several shapes of models of which onnxruntime runs parts: as it computes all of them."""

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

import nmcompile
from nmcompile import runtime
from nmcompile.bundle import write_bundle
from nmcompile.cli import app
from nmcompile.errors import ArtifactError, InputError, UnsupportedOperatorError
from nmcompile.runtime.format import read_artifact
from nmcompile.runtime.steps import binding
from nmcompile.sparsity import parse_pattern, project
from tests.support.mixed_models import (
    BACKBONE,
    FLOAT,
    backbone,
    by_onnxruntime,
    image,
    model,
    node,
    weight,
)
from tests.support.seed_modules import randomised

pytestmark = pytest.mark.isa("avx512f")

OPEN = ("x", FLOAT, ("n", 8, 16, 16))
BATCHES = (1, 4)
TABLE = weight(1 << 14, 16, seed=5)


def shapes(sizes: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    return [{"x": (size, 8, 16, 16)} for size in sizes]


def mixed(seed: int = 0) -> onnx.ModelProto:
    """Ours, onnxruntime's, which reads a table of 1 MB and makes outputs of open length, ours."""
    nodes = [
        *backbone(),
        node("Greater", ["a", "t"], ["g"]),
        node("NonZero", ["g"], ["places"]),
        node("Gather", ["table", "places"], ["found"]),
        node("CumSum", ["a", "axis"], ["s"]),
        node("Conv", ["s", "v"], ["y"], name="second", pads=[1] * 4),
    ]
    weights = {
        "w": weight(16, 8, 3, 3, seed=seed),
        "v": weight(64, 16, 3, 3, seed=seed + 9),
        "t": np.float32(0.5),
        "table": TABLE,
        "axis": np.array(3),
    }
    outputs = [("y", FLOAT, None), ("places", TensorProto.INT64, None), ("found", FLOAT, None)]
    return model(nodes, weights, outputs, [OPEN])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> nmcompile.CompileResult:
    output = tmp_path_factory.mktemp("mixed") / "m.nmc"
    return nmcompile.compile(mixed(), output=output, shapes=shapes())


def check(session: runtime.Session, proto: onnx.ModelProto, x: Any) -> None:
    found = session.run(x)
    for name, wanted in zip(found, by_onnxruntime(proto, {"x": np.asarray(x)}), strict=True):
        assert found[name].shape == wanted.shape and found[name].dtype == wanted.dtype, name
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-4, err_msg=name)


def batch(size: int, seed: int = 1) -> Any:
    return image(seed, (size, 8, 16, 16))


@pytest.mark.parametrize("threads", [1, 2])
def test_each_shape_is_as_onnxruntime_computes_it(
    compiled: nmcompile.CompileResult, threads: int
) -> None:
    images = [batch(size, seed) for seed in range(3) for size in BATCHES]
    with runtime.load(compiled.path, threads=threads) as session, ThreadPoolExecutor(2) as pool:
        assert session.shapes == tuple(shapes())
        list(pool.map(lambda x: check(session, mixed(), x), images))
        again = pickle.loads(pickle.dumps(session))
    check(again, mixed(), images[1])


def test_weights_and_parts_are_there_once(
    compiled: nmcompile.CompileResult, tmp_path: Path
) -> None:
    one = nmcompile.compile(mixed(), output=tmp_path / "one.nmc", shapes=shapes()[1])
    both, single = read_artifact(compiled.path).manifest, read_artifact(one.path).manifest
    assert list(both.by_section) == ["library.0", "onnx.1", "library.2"]
    assert [step.kind for step in both.plan] == [step.kind for step in single.steps]
    weights = [sum(spec.nbytes for spec in each.params) for each in (both, single)]
    assert weights[0] <= 1.02 * weights[1]
    parts = [len(read_artifact(path).parts["onnx.1"]) for path in (compiled.path, one.path)]
    assert TABLE.nbytes < parts[0] <= 1.02 * parts[1]
    assert any("onnxruntime runs some of the model" in note for note in compiled.report.notes)


def test_what_fits_no_shape_is_told_those_there_are(compiled: nmcompile.CompileResult) -> None:
    with runtime.load(compiled.path, threads=1) as session:
        for size in (5, 2):
            with pytest.raises(InputError, match="for, x 1x8x16x16 or x 4x8x16x16, found x"):
                session.run(batch(size))


def test_each_shape_is_profiled_with_its_own_calls(compiled: nmcompile.CompileResult) -> None:
    with runtime.load(compiled.path, threads=1) as session:
        for form in session.manifest.forms:
            times = session.profile(batch(form.inputs[0].shape[0]), repeats=1)
            assert [time.symbol for time in times] == [call.symbol for call in form.calls]
            assert {"conv1", "second"} <= {time.layer for time in times}
            assert [time.symbol for time in times].count("onnxruntime") == 1


def test_it_is_shown_updated_and_in_no_bundle(
    compiled: nmcompile.CompileResult, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["inspect", str(compiled.path)])
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "x float32 1x8x16x16 or x float32 4x8x16x16" in shown
    assert "places int64 4x?" in shown and "NonZero" in shown and "for onnxruntime" in shown
    wanted = nmcompile.compile(mixed(seed=3), output=tmp_path / "new.nmc", shapes=shapes())
    updated = nmcompile.update(compiled.path, mixed(seed=3), output=tmp_path / "updated.nmc")
    assert updated.path.read_bytes() == wanted.path.read_bytes()
    with pytest.raises(ArtifactError, match="onnxruntime runs parts of it"):
        write_bundle(compiled.path, tmp_path / "bundle")
    with pytest.raises(UnsupportedOperatorError, match="NonZero"):
        nmcompile.compile(mixed(), output=tmp_path / "m.nmc", shapes=shapes(), rest="none")


def test_weights_that_a_library_does_not_prepare_are_refused_at_load(
    compiled: nmcompile.CompileResult, tmp_path: Path
) -> None:
    artifact = read_artifact(compiled.path)
    first, second = artifact.manifest.variants
    last = replace(second.steps[2], weights=(7,), entry=f"main_1_{binding((7,))}")
    assert last.prepare and last.section == first.steps[2].section
    changed = replace(second, steps=(*second.steps[:2], last))
    manifest = replace(artifact.manifest, params=(), sections=(), variants=(first, changed))
    weights = dict(
        zip((spec.name for spec in artifact.manifest.params), artifact.params, strict=True)
    )
    parts = {name: bytes(content) for name, content in artifact.parts.items()}
    runtime.write_artifact(tmp_path / "m.nmc", manifest, parts, weights)
    with pytest.raises(ArtifactError, match="to take some of the 1 weights that its library"):
        runtime.load(tmp_path / "m.nmc", threads=1)


def test_a_part_that_holds_its_shape_is_there_for_each(tmp_path: Path) -> None:
    nodes = [
        *backbone(),
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "first"], ["n"]),
        node("Concat", ["n", "rest"], ["flat"], axis=0),
        node("CumSum", ["a", "axis"], ["s"]),
        node("Reshape", ["s", "flat"], ["y"]),
    ]
    weights = {**BACKBONE, "first": np.array([0]), "rest": np.array([64, 64]), "axis": np.array(3)}
    proto = model(nodes, weights, [("y", FLOAT, None)], [OPEN])
    nmcompile.compile(proto, output=tmp_path / "m.nmc", shapes=shapes())
    assert {"onnx.1", "onnx.1.1"} <= set(read_artifact(tmp_path / "m.nmc").parts)
    with runtime.load(tmp_path / "m.nmc", threads=1) as session:
        for size in BATCHES:
            check(session, proto, batch(size))


class Counted(nn.Module):
    """Convolutions, one with 2:4, and where what they make is large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(64, 64, 1)
        randomised(self)
        pruned = project(self.second.weight.detach().numpy(), parse_pattern("2:4"))
        with torch.no_grad():
            self.second.weight.copy_(torch.from_numpy(pruned))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.second(functional.relu(self.first(x))))
        return y, torch.nonzero(y > 0.3)


def test_a_torch_model_is_taken_through_onnx_for_all_shapes(tmp_path: Path) -> None:
    net = Counted().eval()
    sizes = [{"x": (1, 8, 12, 12)}, {"x": (2, 8, 16, 20)}]
    result = nmcompile.compile(net, output=tmp_path / "m.nmc", shapes=sizes)
    assert any("taken through ONNX" in note for note in result.report.notes)
    assert list(read_artifact(result.path).parts) == ["library.0", "onnx.1"]
    with runtime.load(result.path, threads=1) as session, torch.no_grad():
        for each in sizes:
            x = torch.randn(each["x"])
            found, wanted = list(session.run(x).values()), net(x)
            np.testing.assert_allclose(found[0], wanted[0].numpy(), rtol=1e-4, atol=1e-4)
            assert found[1].shape == wanted[1].shape
            assert (found[1] == wanted[1].numpy()).all()


def test_other_operators_for_a_shape_are_refused_by_name(tmp_path: Path) -> None:
    """What is behind the convolution goes by the batch."""

    def branch(operator: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info("out", FLOAT, None)
        return helper.make_graph([node(operator, ["a"], ["out"])], operator, [], [made])

    nodes = [
        *backbone(),
        node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "first"], ["n"]),
        node("Equal", ["n", "one"], ["is_one"]),
        node("If", ["is_one"], ["b"], then_branch=branch("Sigmoid"), else_branch=branch("Tanh")),
        node("NonZero", ["b"], ["places"]),
    ]
    weights = {**BACKBONE, "first": np.array(0), "one": np.array(1)}
    proto = model(nodes, weights, [("places", TensorProto.INT64, None)], [OPEN])
    with pytest.raises(UnsupportedOperatorError) as caught:
        nmcompile.compile(proto, output=tmp_path / "m.nmc", shapes=shapes())
    said = str(caught.value)
    assert "found Sigmoid" in said and "Tanh" in said
    assert "for x=1,8,16,16 and" in said and "for x=4,8,16,16: compile one artifact" in said
