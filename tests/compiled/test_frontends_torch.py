"""Torch front end: modules, exported programs and FX graphs, without touching the user's model."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nmcompile.errors import ModelError, ShapeError, UnsupportedOperatorError, WeightError
from nmcompile.frontends import open_model
from nmcompile.frontends.onnx_export import export_onnx
from nmcompile.passes.pipeline import check_graph, run_pipeline
from tests.support.seed_modules import SeedNet, assert_close, randomised, run_torch
from tests.support.seed_relax import relax_constants, run_relax


class Small(nn.Module):
    """Convolution, in-place activation, dropout and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.drop(self.features(x).mean((2, 3))))
        return y


X = torch.randn(2, 3, 8, 8)


def program(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (X,), strict=False)


FORMS: dict[str, Callable[[nn.Module], tuple[Any, Any]]] = {
    "module": lambda model: (model, (X,)),
    "one tensor": lambda model: (model, X),
    "numpy array": lambda model: (model, X.numpy()),
    "keywords": lambda model: (model, {"x": X}),
    "program": lambda model: (program(model), None),
    "decomposed program": lambda model: (program(model).run_decompositions(), None),
    "unlifted program": lambda model: (program(model).module(), None),
    "traced": lambda model: (torch.fx.symbolic_trace(model), (X,)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_model_opens_alike(form: str) -> None:
    model = randomised(Small())
    given, examples = FORMS[form](model)
    source = open_model(given, example_inputs=examples)
    check_graph(source.graph)
    run_pipeline(source.graph, verify=True)
    assert source.kind == "torch"
    assert [(shape, dtype) for _, shape, dtype in source.inputs] == [((2, 3, 8, 8), "float32")]
    assert [layer.op for layer in source.graph.layers()] == ["conv2d", "linear"]
    assert [layer.name for layer in source.graph.layers()] == ["features.0", "fc"]
    first = source.graph.layers()[0]
    assert (first.stride, first.padding) == ((2, 2), (1, 1, 1, 1))
    assert first.macs == 2 * 8 * 4 * 4 * 3 * 9
    native = source.native()
    found = native(x=X) if form == "keywords" else native(X)
    assert_close(found.detach().numpy(), run_torch(model, X))


def test_the_users_training_flags_and_weights_stay() -> None:
    model = Small().train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = open_model(model, example_inputs=(X,))
    run_pipeline(source.graph)
    assert model.training and model.features.training and not model.drop.training
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_the_training_flag_stays_where_export_fails() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = Branching().train()
    with pytest.raises(ModelError, match=r"Branching cannot be exported: torch.export says"):
        open_model(model, example_inputs=(X,))
    assert model.training


def test_the_graph_is_in_evaluation_mode_and_exports_again() -> None:
    source = open_model(randomised(Small()), example_inputs=(X,))
    run_pipeline(source.graph)
    native = source.native()
    assert not any(module.training for module in native.modules())
    again = open_model(native)
    assert [layer.name for layer in again.graph.layers()] == ["features.0", "fc"]


def test_a_program_exported_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="traced in training mode"):
        open_model(program(Small().train()))


def test_missing_example_inputs_are_asked_for() -> None:
    with pytest.raises(ShapeError, match=r"torch model Small .*pass example_inputs.*shapes="):
        open_model(Small())


def test_shapes_by_argument_name_replace_example_inputs() -> None:
    source = open_model(Small(), shapes={"x": (1, 3, 6, 6)})
    assert source.inputs == (("x", (1, 3, 6, 6), "float32"),)


def test_a_program_takes_other_shapes_where_it_leaves_them_open() -> None:
    batch = {"x": {0: torch.export.Dim("n", min=1, max=16)}}
    example = (torch.zeros(2, 3, 6, 6),)
    several = torch.export.export(Small().eval(), example, dynamic_shapes=batch)
    assert open_model(several).inputs == (("x", (2, 3, 6, 6), "float32"),)
    source = open_model(several, shapes={"x": (5, 3, 6, 6)})
    assert source.inputs == (("x", (5, 3, 6, 6), "float32"),)
    fixed = torch.export.export(Small().eval(), example)
    assert open_model(fixed, shapes={"x": (2, 3, 6, 6)}).inputs == open_model(several).inputs
    with pytest.raises(ShapeError, match=r"for x=2,3,6,6, found x=5,3,6,6; .*dynamic_shapes"):
        open_model(fixed, shapes={"x": (5, 3, 6, 6)})
    with pytest.raises(ShapeError, match=r"no input 'y'; its inputs are \['x'\]"):
        open_model(fixed, shapes={"y": (5, 3, 6, 6)})


def test_shapes_are_taken_by_the_names_that_artifacts_have_too() -> None:
    first = open_model(nn.ReLU(), shapes={"input": (2, 3)})
    ((name, shape, dtype),) = first.inputs
    assert open_model(nn.ReLU(), shapes={name: shape}).inputs == first.inputs
    assert name != "input" and dtype == "float32"


def test_a_parameter_of_size_zero_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    model[1].weight = nn.Parameter(torch.zeros(0, 192))
    with pytest.raises(WeightError, match=r"parameter 1\.weight has the shape \(0, 192\)"):
        open_model(model, example_inputs=(X,))


def test_a_graph_that_cannot_be_traced_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    class Overlapping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.fold(x, (6, 6), 3)

    with pytest.raises(ModelError, match="cannot be exported to ONNX"):
        export_onnx(Overlapping(), [torch.ones(1, 18, 16)], ["x"], ["y"])
    ctypes.CDLL(None).fflush(None)  # torch writes from native code
    assert capfd.readouterr().out == ""


def test_outputs_are_named_after_the_keys_that_forward_returns() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"logits": x.mean((2, 3)), "inner": {"map": x.relu()}}

    assert open_model(Two(), example_inputs=(X,)).outputs == ("logits", "inner.map")


def test_outputs_without_keys_are_numbered() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.relu(), x.abs()

    assert open_model(Two(), example_inputs=(X,)).outputs == ("output_0", "output_1")
    assert open_model(Small(), example_inputs=(X,)).outputs == ("output",)


def test_a_model_of_transformers_opens() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config).eval()
    source = open_model(model, example_inputs=(torch.randn(1, 3, 32, 32),))
    run_pipeline(source.graph, verify=True)
    assert source.outputs == ("logits",)
    assert "batch_norm" not in {op.kind for op in source.graph.ops()}
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x).logits.numpy()
        assert_close(np.asarray(source.native()(x).logits), expected)
    assert_close(run_relax(source.to_relax(), x), expected)


def test_buffers_that_forward_writes_keep_their_present_value() -> None:
    class Counting(nn.Module):
        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.full((1,), 5.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            y: torch.Tensor = x + self.calls
            return y

    model = Counting()
    source = open_model(model, example_inputs=(X,))
    run_pipeline(source.graph)
    assert float(model.calls) == 5.0
    for _ in range(2):
        assert torch.equal(source.native()(X), X + 6)


def test_relax_computes_what_torch_does_with_the_weights_of_the_layers() -> None:
    torch.manual_seed(0)
    model, x = randomised(SeedNet()), torch.randn(2, 3, 16, 16)
    source = open_model(model, example_inputs=(x,))
    run_pipeline(source.graph)
    module = source.to_relax()
    found = relax_constants(module)
    for layer in source.graph.layers():
        assert layer.weight.tobytes() in found, layer.name
    assert_close(run_relax(module, x), run_torch(model, x))


class Attention(nn.Module):
    """Heads that are moved behind the tokens and back: the copies in between change strides."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.fc(x).reshape(1, 16, 2, 16).transpose(1, 2)
        y: torch.Tensor = (q @ q.transpose(-1, -2)).softmax(-1) @ q
        return y.transpose(1, 2).reshape(1, 16, 32)


class ChannelsLast(nn.Module):
    """A view that holds only as long as the convolution writes channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        weight = self.conv.weight.detach()
        self.conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bn(self.conv(x)).permute(0, 2, 3, 1)
        return y.view(y.shape[0], -1, 8)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Attention(), torch.randn(1, 16, 32)),
        (ChannelsLast(), torch.randn(2, 4, 6, 6)),
    ],
)
def test_views_survive_a_change_of_strides(model: nn.Module, x: torch.Tensor) -> None:
    source = open_model(randomised(model), example_inputs=(x,))
    run_pipeline(source.graph, verify=True)
    expected = run_torch(model, x)
    assert_close(run_torch(source.native(), x), expected)
    assert_close(run_relax(source.to_relax(), x), expected)


def test_a_copy_that_keeps_its_layout_is_bypassed_and_one_that_changes_it_stays() -> None:
    class Copying(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clone().transpose(1, 2).clone(memory_format=torch.contiguous_format).relu()

    source = open_model(Copying(), example_inputs=(X,))
    run_pipeline(source.graph, verify=True)
    assert [op.where.split()[0] for op in source.graph.ops()] == [
        "aten.transpose.int",
        "aten.clone.default",
        "aten.relu.default",
    ]


def test_a_folded_graph_that_cannot_be_exported_again_is_a_model_error() -> None:
    source = open_model(Small(), example_inputs=(X,))
    node = next(n for n in source.native().graph.nodes if "aten.mean" in str(n.target))
    node.args = (node.args[0], [2, 7])
    with pytest.raises(ModelError, match=r"cannot be exported: torch\.export says IndexError"):
        source.to_relax()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folds_but_is_not_compiled(dtype: torch.dtype) -> None:
    source = open_model(Small().to(dtype), example_inputs=(X.to(dtype),))
    run_pipeline(source.graph, verify=True)
    assert source.native()(X.to(dtype)).dtype is dtype
    name = str(dtype).removeprefix("torch.")
    message = rf"layer features\.0: its weight is {name}; expected float32.*model\.float\(\)"
    with pytest.raises(WeightError, match=message):
        source.to_relax()


def test_a_weight_that_is_only_stored_in_half_precision_is_converted() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.conv.bias is not None
            return nn.functional.conv2d(x, self.conv.weight.float(), self.conv.bias.float())

    model = Stored()
    source = open_model(model, example_inputs=(X,))
    run_pipeline(source.graph, verify=True)
    assert [layer.name for layer in source.graph.layers()] == ["conv"]
    assert_close(run_relax(source.to_relax(), X), run_torch(model, X))


def test_double_precision_names_the_input_or_the_output() -> None:
    with pytest.raises(ModelError, match=r"input x is float64; expected float32"):
        open_model(Small().double(), example_inputs=(X.double(),)).to_relax()

    class Widening(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double()

    with pytest.raises(ModelError, match=r"output 0 is float64; expected float32"):
        open_model(Widening(), example_inputs=(X,)).to_relax()


def test_an_operator_that_tvm_cannot_import_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.special.bessel_j0(x)
            return y

    source = open_model(Odd(), example_inputs=(X,))
    with pytest.raises(UnsupportedOperatorError, match=r"bessel_j0.*\(node special_bessel_j0\)"):
        source.to_relax()
