"""Several shapes in one artifact: each as torch computes it, over the same weights."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

import nmcompile
import nmcompile.precision
from nmcompile import runtime
from nmcompile.cli import app
from nmcompile.errors import InputError, PatternError, ShapeError
from nmcompile.passes.lowering.batch import cost
from nmcompile.runtime.format import read_artifact
from nmcompile.sparsity import parse_pattern, project
from tests.support.examples import examples
from tests.support.kernel_runner import relative_error
from tests.support.quantised import as_defined, exact_peer, output_step, quantised
from tests.support.random_networks import Random
from tests.support.seed_modules import export_onnx, randomised
from tests.support.tiny_models import tiny_net

pytestmark = pytest.mark.isa("avx512f")

NO_TIME = nmcompile.Pruning("project", permute=True, time_limit=0.0)
PATTERNS = ("dense", "2:4", "1x16@0.5", "1x4@0.3", "unstructured@0.2")


def mostly(*few: str, long: Sequence[str]) -> pytest.MarkDecorator:
    """Some patterns, and others in the long run."""
    rest = [pytest.param(pattern, marks=pytest.mark.long) for pattern in long]
    return pytest.mark.parametrize("pattern", [*few, *rest])


class Net(nn.Module):
    """What kernels are for: windows with and without stride, depthwise, 1x1, a residual, a head."""

    def __init__(self, pattern: str = "2:4") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 64, 3, 2, padding=1)
        self.same = nn.Conv2d(64, 64, 3, padding=1)
        self.depth = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.point = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 10)
        randomised(self)
        name, _, density = pattern.partition("@")
        for layer in (self.wide, self.same, self.point) if name != "dense" else ():
            kept = project(
                layer.weight.detach().numpy(), parse_pattern(name), float(density or 0) or None
            )
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(kept))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.wide(functional.relu(self.stem(x))))
        y = functional.relu(self.same(y) + y)
        y = functional.relu(self.point(functional.relu6(self.depth(y))))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Attention(nn.Module):
    """Images move to another axis and back, and a token of the model's own joins each."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.both, self.head = nn.Linear(16, 48), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1)
        batch, count, width = y.shape
        three = self.both(self.norm(y)).reshape(batch, count, 3, 4, 4).permute(2, 0, 3, 1, 4)
        weights = (three[0] @ three[1].transpose(-2, -1) / 2).softmax(-1)
        y = (weights @ three[2]).transpose(1, 2).reshape(batch, count, width)
        out: Tensor = self.head(y[:, 0])
        return out


class Two(nn.Module):
    """Images and numbers of each, and a scale of all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)

    def forward(self, x: Tensor, k: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.conv(x)) + self.linear(k)[:, :, None, None]
        return y * scale, y.amax((2, 3))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Shared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


class Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1, x.shape[1]).flip(0).reshape(x.shape)


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x[:1]


def batches_of(sizes: Sequence[int], shape: Sequence[int] = (3, 16, 16)) -> list[dict[str, Any]]:
    return [{"x": (size, *shape)} for size in sizes]


def compiled(
    model: Any, folder: Path, shapes: Any, **options: Any
) -> tuple[runtime.Session, nmcompile.CompileResult]:
    result = nmcompile.compile(model, output=folder / "m.nmc", shapes=shapes, **options)
    return runtime.load(result.path, threads=1), result


def open_batch(model: nn.Module) -> onnx.ModelProto:
    proto = export_onnx(model, torch.zeros(2, 3, 16, 16))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return proto


def check_shared(path: Path, model: Any, folder: Path, alone: Any, options: Any) -> None:
    """Hold that the weights are as large as those of one shape."""
    one = nmcompile.compile(model, output=folder / "one.nmc", shapes=alone, **options)
    several, single = (
        sum(spec.nbytes for spec in read_artifact(each).manifest.params)
        for each in (path, one.path)
    )
    assert several <= 1.02 * single


def check(
    session: runtime.Session, model: nn.Module, *inputs: Tensor, tolerance: float = 1e-5
) -> None:
    names = [spec.name for spec in session.inputs]
    found = session.run(dict(zip(names, inputs, strict=True)))
    with torch.no_grad():
        expected = model(*inputs)
    for array, wanted in zip(
        found.values(), expected if isinstance(expected, tuple) else [expected], strict=True
    ):
        assert relative_error(array, wanted.numpy()) < tolerance


@examples(2)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3, unique=True),
    st.sampled_from(PATTERNS),
    st.integers(12, 20),
)
def test_every_shape_and_every_sum_is_as_torch_computes_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], pattern: str, side: int
) -> None:
    model = Net(pattern).eval()
    folder = tmp_path_factory.mktemp("shapes")
    session, _ = compiled(model, folder, batches_of(sizes, (3, side, side)))
    assert session.shapes == tuple(batches_of(sizes, (3, side, side)))
    for batch in (*sizes, sum(sizes), 3 * sizes[0]):
        check(session, model, torch.randn(batch, 3, side, side))


@examples(3)
@given(st.integers(0, 2**31), st.sets(st.integers(1, 6), min_size=2, max_size=2))
def test_networks_of_random_operators_run_in_parts(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: set[int]
) -> None:
    model = Random(seed).eval()
    shapes = batches_of(sorted(sizes), (3, 8, 8))
    session, result = compiled(model, tmp_path_factory.mktemp("random"), shapes)
    assert session.manifest.batched == ("x",), result.report.notes
    for batch in (*sizes, sum(sizes)):
        check(session, model, torch.randn(batch, 3, 8, 8))


@mostly("1x16@0.5", long=("dense", "2:4", "1x4@0.3", "unstructured@0.2"))
def test_all_shapes_have_one_copy_of_the_weights(pattern: str, tmp_path: Path) -> None:
    model = Net(pattern).eval()
    _, result = compiled(model, tmp_path, batches_of((1, 8)))
    check_shared(result.path, model, tmp_path, batches_of([8])[0], {})


def test_another_resolution_shares_the_weights(tmp_path: Path) -> None:
    model = Net().eval()
    session, result = compiled(
        model, tmp_path, [{"x": (1, 3, 16, 16)}, {"x": (2, 3, 24, 20)}, {"x": (1, 3, 24, 20)}]
    )
    for shape in ((1, 3, 16, 16), (2, 3, 24, 20), (3, 3, 24, 20), (2, 3, 16, 16)):
        check(session, model, torch.randn(shape))
    params = read_artifact(result.path).manifest.params
    floats = sum(weight.numel() for weight in model.parameters())
    assert sum(spec.nbytes for spec in params) < 1.5 * 4 * floats
    with pytest.raises(InputError, match="x 1x3x16x16 or x 2x3x24x20 or x 1x3x24x20, or a batch"):
        session.run(np.zeros((1, 3, 16, 20), np.float32))


class Words(nn.Module):
    """Whole numbers in, as torch models of text have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 32), nn.Linear(32, 8)

    def forward(self, words: Tensor, *, scale: Tensor) -> Tensor:
        found: Tensor = self.head(self.embedding(words)) * scale
        return found


def test_example_inputs_say_the_dtypes_of_several_shapes(tmp_path: Path) -> None:
    model = Words().eval()
    examples_ = {"words": torch.zeros(1, 3, dtype=torch.int64), "scale": torch.ones(1)}
    shapes = [{"words": (1, 5)}, {"words": (2, 7)}]
    session, _ = compiled(model, tmp_path, shapes, example_inputs=examples_)
    for shape in shapes:
        words = torch.randint(0, 20, shape["words"])
        scale = torch.tensor([2.0])
        (found,) = session.run({"words": words, "scale": scale}).values()
        expected = model(words, scale=scale).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="names of the example inputs, which are words, scale"):
        compiled(model, tmp_path, {"word": (1, 5)}, example_inputs=examples_)


def test_several_inputs_have_their_shapes_together(tmp_path: Path) -> None:
    model = Two().eval()
    shapes = [{"x": (b, 3, 8, 8), "k": (b, 5), "scale": (6, 6)} for b in (1, 4)]
    session, _ = compiled(model, tmp_path, shapes)
    assert session.manifest.batched == ("x", "k")
    for batch in (1, 4, 6):
        check(session, model, torch.randn(batch, 3, 8, 8), torch.randn(batch, 5), torch.rand(6, 6))
    with pytest.raises(InputError, match="found x 4x3x8x8, k 1x5, scale 6x6"):
        session.run(
            {"x": torch.zeros(4, 3, 8, 8), "k": torch.zeros(1, 5), "scale": torch.ones(6, 6)}
        )


def test_attention_runs_in_parts(tmp_path: Path) -> None:
    model = Attention().eval()
    session, _ = compiled(model, tmp_path, batches_of((1, 2, 4), (3, 8, 8)))
    for batch in (1, 2, 3, 4, 11):
        check(session, model, torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Centred(), "mean takes images together"),
        (Normalised(), "softmax takes images together"),
        (Reversed(), "takes images together"),
        (First(), "takes images together"),
        (Shared(), "it is another function for a batch of 4 than of 2: divide"),
    ],
)
def test_images_that_are_not_by_themselves_are_not_run_in_parts(
    model: nn.Module, why: str, tmp_path: Path
) -> None:
    session, result = compiled(model, tmp_path, batches_of((2, 4), (6,)))
    for batch in (2, 4):
        check(session, model, torch.randn(batch, 6))
    (note,) = [note for note in result.report.notes if "not in parts" in note]
    assert why in note
    with pytest.raises(InputError, match="compiled for, x 2x6 or x 4x6, found x 6x6; compile"):
        session.run(np.zeros((6, 6), np.float32))


def test_early_layers_of_each_batch_run_image_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "cores", lambda: 1)
    for name in ("L2_BYTES", "L3_BYTES"):
        monkeypatch.setattr(cost, name, 20_000)
    monkeypatch.setattr(cost, "CALL", 0.0)
    model = Net().eval()
    session, _ = compiled(model, tmp_path, batches_of((1, 4, 8), (3, 24, 24)))
    calls = [len(form.calls) for form in session.manifest.forms]
    assert calls[0] < calls[1] and calls[0] < calls[2]
    for batch in (1, 4, 8, 13):
        check(session, model, torch.randn(batch, 3, 24, 24))


def test_each_shape_is_profiled_with_its_own_calls(tmp_path: Path) -> None:
    session, _ = compiled(Net().eval(), tmp_path, batches_of((1, 4)))
    for form in session.manifest.forms:
        times = session.profile(np.zeros(form.inputs[0].shape, np.float32), repeats=1)
        assert [time.layer for time in times] == [call.layer for call in form.calls]
        assert {"stem", "wide", "head"} <= {time.layer for time in times}
    with pytest.raises(InputError, match="runs these inputs in 2 parts"):
        session.profile(np.zeros((5, 3, 16, 16), np.float32))


def test_onnx_and_torch_inputs_and_their_copies_are_taken_apart(tmp_path: Path) -> None:
    model = Net().eval()
    result = nmcompile.compile(
        open_batch(model), output=tmp_path / "m.nmc", shapes=batches_of((1, 2))
    )
    session = runtime.load(result.path, threads=1)
    x = torch.randn(3, 3, 16, 16)
    (found,) = session.run(x.requires_grad_()).values()
    (strided,) = session.run(x.detach().numpy().transpose(0, 1, 3, 2)).values()
    with torch.no_grad():
        assert relative_error(found, model(x).numpy()) < 1e-5
        assert relative_error(strided, model(x.transpose(2, 3)).numpy()) < 1e-5
    with pytest.raises(InputError, match="expected dtype float32, found float64"):
        session.run(np.zeros((3, 3, 16, 16)))
    with pytest.raises(InputError, match="expected a numpy array or a tensor"):
        session.run([1.0])


def test_an_order_of_channels_that_time_has_ended_is_refused(tmp_path: Path) -> None:
    model = tiny_net()
    with pytest.raises(PatternError, match="would not have the same weights for each"):
        compiled(model, tmp_path, batches_of((1, 2)), pattern="2:4", pruning=NO_TIME)


def test_the_command_line_makes_shows_and_runs_several_shapes(tmp_path: Path) -> None:
    model = Net().eval()
    onnx.save(open_batch(model), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    np.save(tmp_path / "x.npy", x)
    shapes = ("--shape", "x=1,3,16,16", "--shape", "x=2,3,16,16")

    def nmc(*arguments: str, code: int = 0) -> str:
        with contextlib.chdir(tmp_path):
            done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    nmc("compile", "m.onnx", "-o", "m.nmc", *shapes)
    shown = nmc("inspect", "m.nmc")
    assert "inputs x float32 1x3x16x16 or x float32 2x3x16x16" in shown
    assert "other batches run in parts of these" in shown
    variants = json.loads(nmc("inspect", "m.nmc", "--json"))["manifest"]["variants"]
    assert [each["inputs"][0]["shape"][0] for each in variants] == [1, 2]
    nmc("run", "m.nmc", "-i", "x.npy", "-o", "out")
    (found,) = (tmp_path / "out").glob("*.npy")
    with torch.no_grad():
        assert relative_error(np.load(found), model(torch.from_numpy(x)).numpy()) < 1e-5
    assert "only `nmc compile` takes several shapes" in nmc("inspect", "m.onnx", *shapes, code=2)


@pytest.mark.isa("avx512_bf16", native=True)
@mostly("2:4", "1x16@0.5", long=["dense"])
def test_bfloat16_has_several_shapes(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nmcompile.precision, "PAYS", 0.0)
    model = Net(pattern).eval()
    options = {"target": "avx512_bf16", "precision": "bf16"}
    session, result = compiled(model, tmp_path, batches_of((1, 4)), **options)
    assert any("bf16" in call.symbol for call in session.manifest.calls)
    for batch in (1, 4, 6):
        check(session, model, torch.randn(batch, 3, 16, 16), tolerance=2e-2)
    check_shared(result.path, model, tmp_path, batches_of([4])[0], options)


@exact_peer
@mostly("2:4", "1x16@0.5", long=["dense"])
def test_a_quantised_file_that_leaves_its_batch_open_has_several_shapes(
    pattern: str, tmp_path: Path
) -> None:
    model = quantised(open_batch(Net(pattern).eval()), (2, 3, 16, 16))
    options = {"target": "avx512_vnni"}
    session, result = compiled(model, tmp_path, batches_of((1, 4)), **options)
    assert any("i8" in call.symbol for call in session.manifest.calls)
    for batch in (1, 4, 6):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16), np.float32)
        (found,), (wanted,) = session.run(x).values(), as_defined(model, {"x": x})
        assert np.abs(found - wanted).max() <= 1.01 * output_step(model)
    check_shared(result.path, model, tmp_path, batches_of([4])[0], options)
