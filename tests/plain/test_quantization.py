"""Quantised models: close to float, with the zeros and patterns of the folded weights."""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import nmcompile
from nmcompile import MaxLoss, Quantization, QuantizeResult, quantize
from nmcompile.errors import InputError, ModelError, NmcompileError, PatternError, WeightError
from nmcompile.folding import open_folded
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.quantization.folded import FoldedModel, fold_for_quantization
from nmcompile.quantization.proof import prove, read_integers
from nmcompile.sparsity import Detection, detect
from tests.support.examples import examples
from tests.support.peer import peer
from tests.support.seed_modules import Array, SpReBasicBlock, export_onnx, randomised
from tests.support.tiny_models import SHAPE, conv_onnx, conv_weight, example, tiny_net

SAMPLES = 24


class Mixed(nn.Module):
    """Depthwise, grouped, concatenated, gated and clipped; two pools and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(16, 12, 1, groups=4)
        self.gate = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem(x))
        x = torch.cat([x, functional.hardswish(self.depthwise(functional.pad(x, (0, 1, 0, 1))))[
            :, :, 1:, 1:]], 1)  # fmt: skip
        x = functional.max_pool2d(functional.relu6(self.grouped(x)), 2)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Spre(nn.Module):
    """A block with the branches of SpRe in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = SpReBasicBlock(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(functional.relu(self.stem(x))).mean((2, 3)))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "residual": (lambda: tiny_net("2:4"), SHAPE),
    "spre": (lambda: randomised(Spre()), SHAPE),
    "mixed": (lambda: randomised(Mixed()), (2, 3, 16, 16)),
    "linear": (
        lambda: randomised(nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 10))),
        (4, 12),
    ),
}


def data(shape: Sequence[int] = SHAPE, count: int = SAMPLES, seed: int = 7) -> Array:
    random = np.random.default_rng(seed)
    return random.standard_normal((count, *shape[1:])).astype(np.float32)


def build(name: str) -> tuple[nn.Module, Sequence[int]]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make(), shape


@functools.cache
def exported() -> ModelProto:
    """The residual network as ONNX."""
    return export_onnx(build("residual")[0], example())


def quantised(**settings: Any) -> QuantizeResult:
    """The residual network, quantised."""
    return quantize(exported(), data(), quantization=Quantization(**settings))


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[str, QuantizeResult]:
    model, shape = build(request.param)
    zeros = torch.zeros(tuple(shape))
    return request.param, quantize(model, data(shape), example_inputs=zeros)


@pytest.fixture(scope="module")
def plain() -> QuantizeResult:
    """The residual network, quantised with nothing decided, each layer alone, too."""
    return quantised(rank=True)


def run(proto: ModelProto, x: Array) -> Array:
    """In float arithmetic between QuantizeLinear and DequantizeLinear, exactly as they say."""
    session = peer(proto, as_defined=True)
    found: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def noise(found: Array, expected: Array) -> float:
    """Signal to noise in dB."""
    errors = found.astype(np.float64) - expected
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(errors).sum(), 1e-30)))


def stored(proto: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def weight_of(proto: ModelProto, name: str) -> tuple[Array, Array | None]:
    """What is stored for a layer, and its scale; None for a layer in float."""
    node = next(node for node in proto.graph.node if node.name == name)
    made = {out: other for other in proto.graph.node for out in other.output}
    if node.input[1] not in made:
        return stored(proto)[node.input[1]], None
    weight, scale = made[node.input[1]].input[:2]
    return stored(proto)[weight], stored(proto)[scale]


@functools.cache
def folded_weights(name: str) -> dict[str, Array]:
    model, shape = build(name)
    source, _ = open_folded(model, torch.zeros(tuple(shape)))
    return {layer.name: layer.weight for layer in source.graph.layers()}


# What comes out


def test_the_quantised_model_agrees_with_torch(network: tuple[str, QuantizeResult]) -> None:
    name, result = network
    model, shape = build(name)
    x = data(shape, shape[0], seed=8)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    assert noise(run(result.model, x), expected) > 25
    onnx.checker.check_model(result.model, full_check=True)


def test_every_layer_of_the_folded_model_is_in_integers(
    network: tuple[str, QuantizeResult],
) -> None:
    name, result = network
    weights = folded_weights(name)
    assert [layer.name for layer in open_folded(result.model)[0].graph.layers()] == list(weights)
    assert [layer.name for layer in result.report.layers] == list(weights)
    assert result.report.kept == ()
    for layer, weight in weights.items():
        integers, scale = weight_of(result.model, layer)
        assert integers.dtype == np.int8 and scale is not None
        assert scale.shape == weight.shape[:1]
        assert np.abs(integers.astype(int)).max() == 127  # the full range
        real = integers * scale.reshape(-1, *[1] * (weight.ndim - 1))
        steps = np.abs(real - weight) / scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert steps.max() <= 0.5 + 1e-3


def test_zeros_and_patterns_of_the_folded_weights_stay(
    network: tuple[str, QuantizeResult],
) -> None:
    name, result = network
    for layer, weight in folded_weights(name).items():
        integers, _ = weight_of(result.model, layer)
        assert not integers[weight == 0].any()
        if detect(weight).density < 0.9:
            assert detect(integers).pattern == detect(weight).pattern


def test_activations_are_unsigned_and_biases_of_32_bits(
    network: tuple[str, QuantizeResult],
) -> None:
    _, result = network
    held = stored(result.model)
    points = [held[n.input[2]] for n in result.model.graph.node if n.op_type == "QuantizeLinear"]
    assert points and all(point.dtype == np.uint8 for point in points)
    biases = [array for name, array in held.items() if name.endswith("bias_quantized")]
    assert biases and all(array.dtype == np.int32 for array in biases)


def test_a_relu_becomes_a_range_from_zero(plain: QuantizeResult) -> None:
    held = stored(plain.model)
    assert not any(node.op_type == "Relu" for node in plain.model.graph.node)
    behind = [
        held[node.input[2]].item()
        for node in plain.model.graph.node
        if node.op_type == "QuantizeLinear" and "Relu" in node.input[0]
    ]
    assert behind == [0, 0, 0]


def test_batch_norms_and_branches_are_folded_before(network: tuple[str, QuantizeResult]) -> None:
    name, result = network
    kinds = [node.op_type for node in result.model.graph.node]
    assert "BatchNormalization" not in kinds
    assert sum(kinds.count(kind) for kind in ("Conv", "Gemm")) == len(folded_weights(name))


def test_a_filter_of_zeros_keeps_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    first = model[0]
    assert isinstance(first, nn.Conv2d) and first.bias is not None
    with torch.no_grad():
        first.weight[2:5] = 0  # outputs of the model stay
        first.bias[2:5] = torch.tensor([0.003, -0.5, 0.1])
    found = quantize(model, data(), example_inputs=torch.zeros(SHAPE)).model
    held = stored(found)
    bias = held["0.bias_quantized"] * held["0.bias_quantized_scale"]
    np.testing.assert_allclose(bias, first.bias.detach().numpy(), atol=1e-4)


def test_layers_that_share_a_weight_are_layers_each() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(functional.relu(self.conv(x)))
            return y

    torch.manual_seed(0)
    model = randomised(Twice())
    found = quantize(model, data(), example_inputs=torch.zeros(SHAPE))
    names = [layer.name for layer in found.report.layers]
    assert names == [layer.name for layer in open_folded(found.model)[0].graph.layers()]
    assert names == folded_names(model) and len(names) == 2
    assert found.report.loss.decibels > 20


def folded_names(model: nn.Module) -> list[str]:
    source, _ = open_folded(model, torch.zeros(SHAPE))
    return [layer.name for layer in source.graph.layers()]


def test_an_onnx_file_and_the_torch_model_give_the_same_model(
    sparse_onnx: Path, tmp_path: Path
) -> None:
    found = quantize(str(sparse_onnx), data(), output=tmp_path / "q.onnx")
    model, _ = build("residual")
    theirs = quantize(model, data(), example_inputs=torch.zeros(SHAPE))
    assert found.path == tmp_path / "q.onnx"
    assert onnx.load(tmp_path / "q.onnx") == found.model
    names = [layer.name for layer in open_folded(str(sparse_onnx))[0].graph.layers()]
    assert [layer.name for layer in found.report.layers] == names
    assert [layer.name for layer in theirs.report.layers] == names
    for name in names:
        integers, scale = weight_of(found.model, name)
        others, other = weight_of(theirs.model, name)
        # Batch norms are folded in another order: what lies between two integers may differ.
        assert np.abs(integers.astype(int) - others).max() <= 1
        assert (integers != others).mean() < 0.01
        np.testing.assert_allclose(np.asarray(scale), np.asarray(other), rtol=1e-6)


@pytest.mark.parametrize("statistics", ["entropy", "percentile"])
def test_ranges_are_found_by_other_statistics(statistics: str, plain: QuantizeResult) -> None:
    found = quantised(statistics=statistics)
    assert found.report.statistics == statistics
    assert found.report.loss.decibels > 15
    assert stored(found.model)["x_scale"] <= stored(plain.model)["x_scale"]


def test_a_model_of_an_old_opset_is_converted() -> None:
    proto = conv_onnx(conv_weight())
    proto.opset_import[0].version = 11
    found = quantize(proto, data((1, 16, 8, 8)))
    assert found.model.opset_import[0].version >= 13
    assert found.report.loss.decibels > 30


def test_paddings_and_biases_become_part_of_the_products() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)
            self.matrix = nn.Parameter(torch.randn(8, 10))
            self.shift = nn.Parameter(torch.randn(10))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(functional.pad(x, (0, 1, 0, 1)))
            return x.mean((2, 3)) @ self.matrix + self.shift

    torch.manual_seed(0)
    found = quantize(randomised(Parts()), data(), example_inputs=torch.zeros(SHAPE))
    kinds = {node.op_type for node in found.model.graph.node}
    names = [layer.name for layer in open_folded(found.model)[0].graph.layers()]
    assert names == [layer.name for layer in found.report.layers]
    assert kinds >= {"Conv", "Gemm"} and not kinds & {"Pad", "Add", "MatMul"}
    assert found.report.loss.decibels > 25


def test_outputs_and_what_stands_before_them_stay_real_numbers() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = functional.relu(self.body(x))
            y = functional.relu(self.head(x))
            return y.flatten(1).softmax(1), x

    torch.manual_seed(0)
    model = randomised(Tail())
    found = quantize(model, data(), example_inputs=torch.zeros(SHAPE)).model
    kinds = [node.op_type for node in found.graph.node]
    assert kinds[kinds.index("Relu") - 1] == "Conv"  # the second: the first is a range from zero
    assert kinds.count("Relu") == 1
    x = data(count=1, seed=8)
    with torch.no_grad():
        expected = model(torch.from_numpy(x))[0].numpy()
    assert noise(run(found, x), expected) > 25


def test_an_output_beyond_what_calibration_has_shown_is_not_cut_off() -> None:
    model, _ = build("residual")
    x = 2 * data(count=1, seed=9)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    found = quantize(exported(), 0.5 * data()).model
    assert np.ptp(run(found, x)) < np.ptp(expected)  # what lies before is
    head = next(node for node in found.graph.node if node.name == "head")
    assert list(head.output) == [found.graph.output[0].name]


# What is reported


def test_layers_are_measured_alone_and_one_after_the_other(plain: QuantizeResult) -> None:
    report = plain.report
    assert (report.calibrated, report.measured, report.held_out) == (18, 6, True)
    for layer in report.layers:
        assert layer.weight_db is not None and 30 < layer.weight_db < 70
        assert layer.output_db is not None and 20 < layer.output_db < 70
        assert layer.alone_db is not None and layer.alone_db > report.loss.decibels - 1
    assert sorted(report.worst) == sorted(layer.name for layer in report.layers)
    costs = {layer.name: layer.alone_db for layer in report.layers}
    assert report.worst[0] == min(costs, key=lambda name: costs[name] or 0.0)
    assert report.to_dict()["worst"] == list(report.worst)


def test_the_loss_is_the_one_that_onnxruntime_shows(plain: QuantizeResult) -> None:
    model, _ = build("residual")
    x = data()[3::4]  # what is held out
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    found = np.concatenate([run(plain.model, x[i : i + 1]) for i in range(len(x))])
    assert plain.report.loss.decibels == pytest.approx(noise(found, expected), abs=0.1)
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    assert plain.report.loss.same_top1 == same


def test_labels_give_the_accuracy_of_both() -> None:
    model, _ = build("residual")
    x = data()
    with torch.no_grad():
        labels = model(torch.from_numpy(x)).argmax(1).numpy()
    labels[3] = (labels[3] + 1) % 10  # one that the float model gets wrong, among the held out
    loss = quantize(exported(), {"x": x, "labels": labels}).report.loss
    assert loss.top1_float == pytest.approx(5 / 6)
    assert loss.top1 is not None and loss.same_top1 is not None


# What stays in float32


def test_a_layer_that_is_kept_stays_as_it_is() -> None:
    result = quantised(keep_float=["na*"])
    assert result.report.kept == ("narrow",)
    weight, scale = weight_of(result.model, "narrow")
    assert scale is None
    np.testing.assert_allclose(weight, folded_weights("residual")["narrow"], rtol=1e-6)
    for name in ("stem", "wide", "head"):
        assert weight_of(result.model, name)[1] is not None


def test_a_sum_between_layers_in_float_stays_too() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = self.c(functional.relu(self.b(functional.sigmoid(x)) + x))
            logits: Tensor = self.head(functional.max_pool2d(x, 16).flatten(1))
            return logits

    torch.manual_seed(0)
    settings = Quantization(keep_float=["a", "b", "c"])
    model = randomised(Chain())
    found = quantize(model, data(), example_inputs=torch.zeros(SHAPE), quantization=settings).model
    made = {name: node.op_type for node in found.graph.node for name in node.output}
    read = {n.op_type: [made.get(name) for name in n.input] for n in found.graph.node}
    assert read["Add"] == ["Conv", "Conv"] and read["Relu"] == ["Add"]
    assert read["Gemm"][:2] == ["DequantizeLinear"] * 2


def test_the_worst_layers_stay_until_the_loss_is_small_enough(plain: QuantizeResult) -> None:
    least = plain.report.loss.decibels + 3
    result = quantised(max_loss=MaxLoss(decibels=least))
    kept = result.report.kept
    assert 0 < len(kept) < 4
    assert set(kept) == set(plain.report.worst[: len(kept)])
    assert result.report.loss.decibels >= least
    fewer = quantised(keep_float=plain.report.worst[: len(kept) - 1]) if len(kept) > 1 else plain
    assert fewer.report.loss.decibels < least


def test_nothing_stays_where_the_loss_is_small_enough() -> None:
    assert quantised(max_loss=MaxLoss.parse("100%")).report.kept == ()


@pytest.mark.parametrize(
    ("text", "percent", "decibels"), [("0.5%", 0.5, None), ("30dB", None, 30.0), ("0 %", 0.0, None)]
)
def test_a_largest_loss_is_a_share_or_a_ratio(
    text: str, percent: float | None, decibels: float | None
) -> None:
    assert MaxLoss.parse(text) == MaxLoss(percent, decibels)


@pytest.mark.parametrize("text", ["1", "dB", "-1%", "101%", "nan%", "1e9dB"])
def test_a_largest_loss_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a share of samples .* such as 30dB"):
        MaxLoss.parse(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_float": ["stem", "tail*"]}, r"is called tail\*: expected one of stem, wide"),
        ({"keep_float": ["*"]}, r"every layer is to be kept in float32 \(\*\)"),
        (
            {"max_loss": MaxLoss(decibels=300)},
            r"at least 300 dB, cannot be had: with \w+ alone in int8",
        ),
    ],
)
def test_what_cannot_be_kept_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        quantised(**settings)


def test_a_loss_of_classes_needs_classes() -> None:
    model = randomised(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1)))
    settings = Quantization(max_loss=MaxLoss(percent=1))
    with pytest.raises(InputError, match=r"expected a model whose first output is .*classes"):
        quantize(model, data((1, 12)), example_inputs=torch.zeros(1, 12), quantization=settings)


# What is refused


def float64_model() -> ModelProto:
    proto = conv_onnx(conv_weight())
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(conv_weight().astype(float), "w"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return proto


def without_layers() -> ModelProto:
    shape = [1, 16, 8, 8]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def overflowing() -> ModelProto:
    return conv_onnx(np.full((4, 16, 3, 3), 1e38, np.float32))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (float64_model, "is float64; expected float32"),
        (without_layers, "there is nothing to quantise"),
        (
            lambda: quantize(conv_onnx(conv_weight()), data((1, 16, 8, 8))).model,
            "is quantised already: expected a float32 model, found integers at ",
        ),
        (overflowing, "the tensor c is infinite or not a number on the calibration data"),
    ],
)
def test_a_model_that_cannot_be_quantised_is_named(
    make: Callable[[], ModelProto], said: str
) -> None:
    with pytest.raises(NmcompileError, match=said):
        quantize(make(), data((1, 16, 8, 8)))


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(InputError, match="'mean' are unknown; expected one of: minmax"):
        Quantization(statistics="mean")


@pytest.mark.parametrize(
    ("labels", "said"),
    [(np.arange(SAMPLES), "expected 0 to 9, .* found 3 to 23"), (np.full(SAMPLES, -1), "-1 to -1")],
)
def test_labels_have_to_be_classes(labels: Array, said: str) -> None:
    with pytest.raises(InputError, match=said):
        quantize(exported(), {"x": data(), "labels": labels})


def test_a_missing_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(InputError, match=r"pip install 'nmcompile\[quantize\]'"):
        quantised()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("the data was read")
        yield

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NmcompileError, match="cannot write"):
        quantize(exported(), never(), output=tmp_path / "file" / "q.onnx")


# What is proven


@pytest.fixture(scope="module")
def proven() -> tuple[FoldedModel, dict[str, QuantisedConstant]]:
    folded = fold_for_quantization(exported())
    return folded, read_integers(quantised().model)


def test_a_zero_that_is_none_any_more_is_found(
    proven: tuple[FoldedModel, dict[str, QuantisedConstant]],
) -> None:
    folded, integers = proven
    prove(folded, integers, ())
    spoilt = integers["wide"].values.copy()
    spoilt[tuple(np.argwhere(spoilt == 0)[0])] = 1
    with pytest.raises(WeightError, match=r"layer wide: 1 of .* zeros are no zeros"):
        prove(folded, {**integers, "wide": replace(integers["wide"], values=spoilt)}, ())


def test_a_pattern_that_is_none_any_more_is_found(
    proven: tuple[FoldedModel, dict[str, QuantisedConstant]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, integers = proven
    wrong = nmcompile.sparsity.parse_pattern("1:4")
    monkeypatch.setattr(
        "nmcompile.quantization.proof.detect",
        lambda weight: Detection(wrong, (wrong,), 0.25),
    )
    with pytest.raises(PatternError, match="layer stem: the integers break the pattern 1:4"):
        prove(folded, integers, ())


def test_a_layer_that_was_left_alone_unasked_is_found(
    proven: tuple[FoldedModel, dict[str, QuantisedConstant]],
) -> None:
    folded, integers = proven
    missing = {name: entry for name, entry in integers.items() if name != "head"}
    prove(folded, missing, ["head"])
    with pytest.raises(WeightError, match="layer head: expected int8 weights, found float32"):
        prove(folded, missing, ())


def test_asymmetric_weights_are_found(
    proven: tuple[FoldedModel, dict[str, QuantisedConstant]],
) -> None:
    folded, _ = proven
    proto = quantised().model
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.weight_zero_point":
            point = np.ones(tensor.dims, np.int8)
            tensor.CopyFrom(numpy_helper.from_array(point, tensor.name))
    with pytest.raises(WeightError, match="layer wide: expected symmetric int8 weights"):
        prove(folded, read_integers(proto), ())


@examples(5, 80)
@given(
    channels=st.sampled_from([(16, 16), (32, 8), (6, 10)]),
    kernel=st.sampled_from([1, 3]),
    pattern=st.sampled_from(["2:4", "1:8", "1x2", "unstructured"]),
    seed=st.integers(0, 2**16),
)
def test_any_pattern_stays(channels: tuple[int, int], kernel: int, pattern: str, seed: int) -> None:
    outputs, inputs = channels
    random = np.random.default_rng(seed)
    dense = random.standard_normal((outputs, inputs, kernel, kernel)) * 10 ** random.uniform(-4, 4)
    parsed = nmcompile.sparsity.parse_pattern(pattern)
    density = None if pattern in ("2:4", "1:8") else 0.4
    weight = nmcompile.sparsity.project(dense.astype(np.float32), parsed, density)
    result = quantize(conv_onnx(weight), data((1, inputs, 8, 8), 3))
    integers, _ = weight_of(result.model, result.report.layers[0].name)
    assert not integers[weight == 0].any()
    assert np.count_nonzero(integers) > 0.9 * np.count_nonzero(weight)
    assert not nmcompile.sparsity.check(integers, parsed).violations


def test_models_with_errors_in_them_get_ours(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        quantize(tmp_path / "m.onnx", data())
    with pytest.raises(InputError, match="the calibration data is empty"):
        quantize(exported(), [])
