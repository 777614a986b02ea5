"""The Python interface, as its users meet it: model in, artifact out, same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import nmcompile
from nmcompile.errors import PatternError
from nmcompile.passes.enforce_pattern import EnforceResult
from nmcompile.sparsity import check, detect, parse_pattern
from tests.support.peer import peer
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, example, tiny_net

pytestmark = pytest.mark.isa("avx512f")

Array = npt.NDArray[Any]


def assert_same(found: Array, expected: Array) -> None:
    """Within 1e-4 of the output range, as the project promises."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def torch_output(model: Any, x: Tensor) -> Array:
    with torch.no_grad():
        return np.asarray(model(x))


def onnx_outputs(model: onnx.ModelProto | Path, x: Tensor) -> list[Array]:
    session = peer(model)
    return [np.asarray(y) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


def compiled_output(model: Any, folder: Path, x: Tensor, **options: Any) -> Array:
    result = nmcompile.compile(model, output=folder / "m.nmc", **options)
    output: Array
    (output,) = nmcompile.runtime.load(result.path).run(x).values()
    return output


# From torch


@pytest.fixture(scope="module")
def torch_result(tmp_path_factory: pytest.TempPathFactory) -> nmcompile.CompileResult:
    """`tiny_net("1x16", 0.5)`, compiled."""
    return nmcompile.compile(
        tiny_net("1x16", 0.5),
        output=tmp_path_factory.mktemp("torch") / "tiny.nmc",
        example_inputs=(example(),),
    )


def test_a_torch_module_computes_the_same(torch_result: nmcompile.CompileResult) -> None:
    session = nmcompile.runtime.load(torch_result.path)
    for seed in range(3):
        x = example(seed=seed)
        assert_same(session.run(x)["output"], torch_output(tiny_net("1x16", 0.5), x))


def test_an_exported_program_computes_the_same(tmp_path: Path) -> None:
    x, model = example(), tiny_net("2:4")
    program = torch.export.export(model, (x,))
    assert_same(compiled_output(program, tmp_path, x), torch_output(model, x))


def test_an_fx_graph_computes_the_same(tmp_path: Path) -> None:
    x, model = example(), tiny_net("2:4")
    graph = fx.symbolic_trace(model)
    found = compiled_output(graph, tmp_path, x, example_inputs=(x,))
    assert_same(found, torch_output(model, x))


def test_compiling_leaves_the_torch_model_alone(tmp_path: Path) -> None:
    model = tiny_net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nmcompile.compile(
        model,
        output=tmp_path / "m.nmc",
        example_inputs=example(),
        pattern="2:4",
        pruning=nmcompile.Pruning(),
    )
    assert model.training and model.norm1.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class TwoWays(nn.Module):
    """Two inputs by name, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"total": self.conv(left) + self.conv(right), "first": self.conv(left)}


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoWays().eval()
    left, right = example((1, 4, 8, 8), 2), example((1, 4, 8, 8), 3)
    nmcompile.compile(
        model, output=tmp_path / "m.nmc", example_inputs={"left": left, "right": right}
    )
    session = nmcompile.runtime.load(tmp_path / "m.nmc")
    assert [spec.name for spec in session.inputs] == ["left", "right"]
    found = session.run({"right": right.numpy(), "left": left.numpy()})
    with torch.no_grad():
        expected = model(left, right)
    assert set(found) == {"total", "first"}
    for name, value in expected.items():
        assert_same(found[name], value.numpy())


# From ONNX


def test_an_onnx_file_computes_the_same(sparse_artifact: Path, sparse_onnx: Path) -> None:
    session = nmcompile.runtime.load(sparse_artifact)
    for seed in range(3):
        x = example(seed=seed)
        assert_same(session.run({"x": x.numpy()})["y"], onnx_outputs(sparse_onnx, x)[0])


def test_an_onnx_model_in_memory_computes_the_same(tmp_path: Path) -> None:
    x, proto = example((1, 16, 8, 8)), conv_onnx(conv_weight())
    before = proto.SerializeToString()
    assert_same(compiled_output(proto, tmp_path, x), onnx_outputs(proto, x)[0])
    assert proto.SerializeToString() == before


def test_weights_in_external_files_are_read(tmp_path: Path) -> None:
    x, path = example((1, 16, 8, 8)), tmp_path / "model.onnx"
    onnx.save(
        conv_onnx(conv_weight()), path, save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    assert (tmp_path / "w.bin").stat().st_size >= conv_weight().nbytes
    assert_same(compiled_output(path, tmp_path, x), onnx_outputs(path, x)[0])


def test_open_dimensions_take_the_given_shape(tmp_path: Path) -> None:
    x, proto = example((2, 16, 8, 8)), conv_onnx(conv_weight(), batch="N")
    found = compiled_output(proto, tmp_path, x, shapes={"x": (2, 16, 8, 8)})
    assert_same(found, onnx_outputs(proto, x)[0])


# What compile says and takes


def test_the_report_names_pattern_density_and_kernel(
    sparse_result: nmcompile.CompileResult,
) -> None:
    layers = {layer.name.strip("/").split("/")[0]: layer for layer in sparse_result.report.layers}
    assert set(layers) == {"stem", "wide", "narrow", "head"}
    assert (layers["wide"].pattern, layers["wide"].axis) == ("2:4", "ic")
    assert "2:4" in (layers["narrow"].pattern, *layers["narrow"].also)
    for name in ("wide", "narrow"):
        assert layers[name].density == 0.5
        assert layers[name].sparse and not layers[name].reason
    assert layers["wide"].macs == 16 * 16 * 16 * 16 * 9
    assert not layers["stem"].sparse and layers["stem"].reason


def test_the_digest_pins_the_artifact(sparse_result: nmcompile.CompileResult) -> None:
    session = nmcompile.runtime.load(sparse_result.path, digest=sparse_result.digest)
    assert session.digest == sparse_result.digest


def test_the_manifest_tells_layers_and_model(sparse_result: nmcompile.CompileResult) -> None:
    session = nmcompile.runtime.load(sparse_result.path)
    assert session.manifest.model.name == "sparse"
    expected = [layer.to_dict() for layer in sparse_result.report.layers]
    found = [dict(layer) for layer in session.manifest.layers]
    assert all(layer.pop("flow") for layer in found)  # see test_viewer
    assert found == expected


def test_the_profile_names_the_layers_of_the_report(
    torch_result: nmcompile.CompileResult,
) -> None:
    session = nmcompile.runtime.load(torch_result.path)
    times = session.profile(example(), repeats=2)
    named = [time.layer for time in times]
    assert {layer.name for layer in torch_result.report.layers} <= set(named)
    assert all(time.ms >= 0 for time in times)


def test_enforcing_while_compiling_runs_the_projected_model(tmp_path: Path) -> None:
    x, model = example(), tiny_net()
    pruning = nmcompile.Pruning(exclude=["narrow"])
    found = compiled_output(model, tmp_path, x, example_inputs=x, pattern="2:4", pruning=pruning)
    expected = nmcompile.enforce(model, "2:4", pruning=pruning, example_inputs=x)
    assert_same(found, torch_output(expected, x))


def test_the_dense_pattern_ignores_zeros(tmp_path: Path) -> None:
    x, model = example(), tiny_net("2:4")
    result = nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=x, pattern="dense")
    assert {layer.name for layer in result.report.layers} == {"stem", "wide", "narrow", "head"}
    assert not any(layer.sparse for layer in result.report.layers)
    found = nmcompile.runtime.load(result.path).run(x)["output"]
    assert_same(found, torch_output(model, x))


def test_progress_is_told_every_stage(tmp_path: Path) -> None:
    stages: list[str] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        assert 0 <= done <= total
        if stage not in stages:
            stages.append(stage)

    result = nmcompile.compile(
        conv_onnx(conv_weight()), output=tmp_path / "m.nmc", progress=progress
    )
    assert stages[0] == "reading the model"
    assert stages[-1] == "writing the artifact"
    assert list(result.seconds) == stages


# fold, enforce, inspect


def test_folding_a_torch_model_keeps_its_function() -> None:
    x, model = example(), tiny_net()
    folded = nmcompile.fold(model, (x,))
    assert isinstance(folded, fx.GraphModule)
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    assert_same(torch_output(folded, x), torch_output(model, x))


def test_folding_an_onnx_model_keeps_its_function() -> None:
    x, proto = example((1, 16, 8, 8)), conv_onnx(conv_weight(), batch_norm=True)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "BatchNormalization", "Relu"]
    folded = nmcompile.fold(proto)
    assert isinstance(folded, onnx.ModelProto)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu"]
    assert_same(onnx_outputs(folded, x)[0], onnx_outputs(proto, x)[0])


def test_enforcing_gives_torch_layers_the_pattern() -> None:
    sparse = nmcompile.enforce(
        tiny_net(), "1x16", pruning=nmcompile.Pruning(density=0.25), example_inputs=(example(),)
    )
    weights = [
        p for p in sparse.state_dict().values() if p.shape in ((16, 16, 3, 3), (16, 16, 1, 1))
    ]
    assert len(weights) == 2
    for weight in weights:
        assert check(weight.numpy(), parse_pattern("1x16")).ok
        assert detect(weight.numpy()).density == 0.25


def test_enforcing_gives_onnx_layers_the_pattern(dense_onnx: Path) -> None:
    sparse = nmcompile.enforce(dense_onnx, "1:4")
    weights = [onnx.numpy_helper.to_array(w) for w in sparse.graph.initializer]
    pruned = [w for w in weights if w.ndim == 4 and w.shape[1] == 16]
    assert len(pruned) == 2
    assert all(check(weight, parse_pattern("1:4")).ok for weight in pruned)
    assert len(onnx_outputs(sparse, example())) == 1


def test_enforcing_permuted_channels_keeps_more_of_the_weights() -> None:
    results: list[EnforceResult] = []
    stages: list[str] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        assert 0 <= done <= total
        stages.append(stage)

    sparse = nmcompile.enforce(
        tiny_net(), "2:4", pruning=nmcompile.Pruning(permute=True, seed=1, time_limit=20.0),
        example_inputs=(example(),),
        progress=progress, report=results.append,
    )  # fmt: skip
    rows = [row for row in results[0].layers if row.skipped is None]
    assert [row.layer for row in rows] == ["wide", "narrow"]
    weights = dict(sparse.named_parameters())
    for row in rows:
        assert row.energy_dropped_in_order is not None
        assert row.energy_dropped < row.energy_dropped_in_order
        assert check(weights[f"{row.layer}.weight"].numpy(), parse_pattern("2:4")).ok
    assert list(dict.fromkeys(stages)) == [
        "reading the model", "folding", "projecting the weights", "searching orders of channels"
    ]  # fmt: skip


def test_enforcing_changes_nothing_that_has_the_pattern(sparse_onnx: Path) -> None:
    x = example()
    sparse = nmcompile.enforce(sparse_onnx, "2:4")
    assert_same(onnx_outputs(sparse, x)[0], onnx_outputs(sparse_onnx, x)[0])


@pytest.mark.parametrize(
    "pruning",
    [
        nmcompile.Pruning(),
        nmcompile.Pruning("verify", exclude=["narrow"]),
        nmcompile.Pruning("verify", permute=True),
    ],
)
@pytest.mark.parametrize("pattern", ["auto", "dense"])
def test_pruning_without_a_pattern_is_refused(
    pattern: str, pruning: nmcompile.Pruning, dense_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(PatternError, match=f"needs to know the pattern; found '{pattern}'"):
        nmcompile.compile(dense_onnx, output=tmp_path / "m.nmc", pattern=pattern, pruning=pruning)


def test_inspecting_a_torch_model_counts_violations() -> None:
    report = nmcompile.inspect(tiny_net("2:4"), example_inputs=example(), pattern="1:4")
    layers = {layer.name: layer for layer in report.layers}
    weight = tiny_net("2:4").wide.weight.detach().numpy()
    expected = check(weight, parse_pattern("1:4"))
    assert layers["wide"].violations == expected.violations > 0
    assert layers["wide"].first_violation == expected.first


def test_inspecting_counts_the_work(sparse_onnx: Path) -> None:
    report = nmcompile.inspect(sparse_onnx)
    pixels = SHAPE[2] * SHAPE[3]
    pruned = 16 * 16 * 9 * pixels + 16 * 16 * pixels
    dense = 3 * 16 * 9 * pixels + 16 * 10
    assert report.macs == dense + pruned
    assert report.density == pytest.approx((dense + pruned / 2) / (dense + pruned))


def test_inspecting_names_what_has_no_kernel() -> None:
    report = nmcompile.inspect(conv_onnx(conv_weight(), tail="Erf"))
    assert report.other_operators == {"erf": 1}
