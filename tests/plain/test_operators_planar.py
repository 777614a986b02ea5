"""Convolutions along one axis and transposed ones are written as plain convolutions of images."""

from typing import Any

import numpy as np
import onnx
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nmcompile.frontends import open_model
from nmcompile.passes.operators.onnx.settle import settle as settle_onnx
from nmcompile.passes.operators.torch.settle import settle as settle_torch
from nmcompile.passes.pipeline import check_graph
from tests.support.examples import examples
from tests.support.seed_modules import assert_close, export_onnx, run_onnx, run_torch

Array = Any
PLAIN = {"Conv", "Concat", "Reshape", "Transpose", "Slice"}

small = st.integers(1, 3)


@st.composite
def geometries(draw: st.DrawFn, *, even: bool) -> dict[str, Any]:
    """A kernel, its strides, ... in ONNX's words; with `even`, padding is the same all around."""
    rank = draw(st.integers(1, 2))
    along = st.lists(small, min_size=rank, max_size=rank)
    begin = draw(st.lists(st.integers(0, 3), min_size=rank, max_size=rank))
    end = begin if even else draw(st.lists(st.integers(0, 3), min_size=rank, max_size=rank))
    strides, dilations = draw(along), draw(along)
    # onnxruntime wants less than the stride, torch less than the greater one.
    widest = [max(s, d if even else 0) for s, d in zip(strides, dilations, strict=True)]
    return {
        "image": draw(st.lists(st.integers(2, 6), min_size=rank, max_size=rank)),
        "kernel": draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)),
        "strides": strides,
        "dilations": dilations,
        "pads": [*begin, *end],
        "output_padding": [draw(st.integers(0, most - 1)) for most in widest],
        "group": draw(st.integers(1, 2)),
    }


def sizes(given: dict[str, Any]) -> list[int]:
    """The extents of what a transposed convolution makes."""
    rank = len(given["image"])
    return [
        given["strides"][i] * (given["image"][i] - 1)
        + given["dilations"][i] * (given["kernel"][i] - 1)
        + 1
        + given["output_padding"][i]
        - given["pads"][i]
        - given["pads"][rank + i]
        for i in range(rank)
    ]


def every_phase_has_a_tap(given: dict[str, Any]) -> bool:
    """Whether all the remainders of k d by s occur."""
    axes = zip(given["kernel"], given["strides"], given["dilations"], strict=True)
    return all(len({k * d % s for k in range(n)}) == s for n, s, d in axes)


def one_layer(
    operator: str, image: list[int], weight: Array, bias: Array, **attributes: Any
) -> onnx.ModelProto:
    inputs = weight.shape[0]
    if operator == "Conv":
        inputs = weight.shape[1] * attributes.get("group", 1)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "b"], ["y"], name="n", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, inputs, *image])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(proto: onnx.ModelProto, x: Array) -> Array:
    return run_onnx(proto, torch.from_numpy(x))


def settled(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    """The model in other operators, and which they are."""
    graph: Any = open_model(proto).graph
    settle_onnx(graph)
    check_graph(graph)
    native = graph.native()
    return native, {node.op_type for node in native.graph.node}


@examples(60)
@given(geometry=geometries(even=False), channels=st.tuples(small, small), seed=st.integers(0, 99))
def test_onnx_transposed_convolutions_keep_their_function(
    geometry: dict[str, Any], channels: tuple[int, int], seed: int
) -> None:
    image, kernel = geometry["image"], geometry["kernel"]
    assume(min(sizes(geometry)) > 0)
    groups = geometry["group"]
    attributes = {name: geometry[name] for name in geometry if name not in ("image", "kernel")}
    weight = drawn(seed, channels[0] * groups, channels[1], *kernel)
    bias = drawn(seed + 1, channels[1] * groups)
    proto = one_layer("ConvTranspose", image, weight, bias, **attributes)
    again, operators = settled(proto)
    assert (operators <= PLAIN) == every_phase_has_a_tap(geometry)
    x = drawn(seed + 2, 2, channels[0] * groups, *image)
    assert_close(run(again, x), run(proto, x))


@examples(30)
@given(
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "wanted"]),
    stride=small,
    kernel=st.integers(3, 5),
    length=st.integers(2, 6),
)
def test_onnx_padding_that_is_left_to_be_found(
    mode: str, stride: int, kernel: int, length: int
) -> None:
    attributes: dict[str, Any] = {"strides": [stride]}
    attributes |= (
        {"output_shape": [length * stride + 1]} if mode == "wanted" else {"auto_pad": mode}
    )
    x = drawn(2, 2, 3, length)
    proto = one_layer("ConvTranspose", [length], drawn(0, 3, 2, kernel), drawn(1, 2), **attributes)
    again, operators = settled(proto)
    assert operators <= PLAIN
    assert_close(run(again, x), run(proto, x))
    if mode != "wanted":
        plain = one_layer("Conv", [9], drawn(0, 2, 3, kernel), drawn(1, 2), **attributes)
        again, operators = settled(plain)
        assert operators <= PLAIN
        x = drawn(2, 2, 3, 9)
        assert_close(run(again, x), run(plain, x))


@examples(15, 400)
@given(geometry=geometries(even=True), channels=st.tuples(small, small), seed=st.integers(0, 99))
def test_torch_transposed_convolutions_keep_their_function(
    geometry: dict[str, Any], channels: tuple[int, int], seed: int
) -> None:
    rank, groups = len(geometry["image"]), geometry["group"]
    assume(min(sizes(geometry)) > 0 and every_phase_has_a_tap(geometry))
    kind: Any = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose2d
    torch.manual_seed(seed)
    layer = kind(
        channels[0] * groups,
        channels[1] * groups,
        geometry["kernel"],
        geometry["strides"],
        geometry["pads"][:rank],
        geometry["output_padding"],
        groups,
        dilation=geometry["dilations"],
    )
    same_in_torch(nn.Sequential(layer), torch.randn(2, channels[0] * groups, *geometry["image"]))


@examples(10, 200)
@given(
    kernel=st.integers(1, 5),
    stride=small,
    padding=st.sampled_from([0, 2, "same", "valid"]),
    dilation=small,
    groups=st.integers(1, 2),
)
def test_convolutions_along_one_axis_keep_their_function(
    kernel: int, stride: int, padding: int | str, dilation: int, groups: int
) -> None:
    stride = 1 if padding == "same" else stride
    layer = nn.Conv1d(
        4,
        6,
        kernel,
        stride,
        padding,
        dilation,
        groups,
    )
    same_in_torch(nn.Sequential(layer), torch.randn(2, 4, 17))


@st.composite
def volumes(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution along three axes and its input."""
    three = st.tuples(small, small, small)
    kernel, stride, dilation = draw(three), draw(three), draw(three)
    padding = draw(st.tuples(*[st.integers(0, 2)] * 3))
    groups = draw(st.integers(1, 2))
    inputs, outputs = (groups * draw(small) for _ in range(2))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    image = [span + draw(st.integers(0, 4)) for span in spans]
    layer = nn.Conv3d(inputs, outputs, kernel, stride, padding, dilation, groups)
    return layer, torch.randn(draw(st.integers(1, 2)), inputs, *image)


@st.composite
def spread_volumes(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A transposed one, all phases of which have a tap, and its input."""
    stride, groups = draw(st.tuples(small, small, small)), draw(st.integers(1, 2))
    kernel = tuple(step + draw(st.integers(0, 2)) for step in stride)
    padding = tuple(draw(st.integers(0, size - 1)) for size in kernel)
    extra = tuple(draw(st.integers(0, step - 1)) for step in stride)
    # Prime to the stride.
    dilation = tuple(1 if step == 2 else draw(st.integers(1, 2)) for step in stride)
    inputs, outputs = (groups * draw(small) for _ in range(2))
    kind: Any = nn.ConvTranspose3d
    layer = kind(
        inputs, outputs, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation
    )
    return layer, torch.randn(draw(st.integers(1, 2)), inputs, *draw(st.tuples(*[small] * 3)))


@examples(12, 300)
@given(found=st.one_of(volumes(), spread_volumes()), seed=st.integers(0, 99))
def test_convolutions_along_three_axes_keep_their_function(
    found: tuple[nn.Module, torch.Tensor], seed: int
) -> None:
    layer, x = found
    with torch.no_grad():
        try:
            assume(layer(x).numel() > 0)
        except RuntimeError:  # which is what other layers without outputs raise
            assume(False)
    same_in_torch(nn.Sequential(layer), x)
    proto = export_onnx(layer.eval(), x)
    again, operators = settled(proto)
    assert operators <= {*PLAIN, "Add", "Pad"}
    assert_close(run(again, x.numpy()), run(proto, x.numpy()))


def same_in_torch(model: nn.Module, x: torch.Tensor) -> None:
    """The settled graph has convolutions of images only, and gives what the model gives."""
    model.eval()
    graph: Any = open_model(model, example_inputs=(x,)).graph
    settle_torch(graph)
    graph.check()
    targets = [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]
    convolutions = {name for name in targets if "conv" in name}
    assert convolutions == {"aten.conv2d.default"}
    assert_close(run_torch(graph.native(), x), run_torch(model, x))


def test_infinities_reach_what_they_reach_in_the_model() -> None:
    # A kernel of 3 at stride 2: phases have one tap or two, and none gets another one.
    weight, bias = drawn(0, 2, 3, 3, 3), drawn(1, 3)
    proto = one_layer("ConvTranspose", [4, 4], weight, bias, strides=[2, 2], pads=[1, 1, 1, 1])
    x = drawn(2, 2, 2, 4, 4)
    x[0, 0, 1, 2] = np.inf
    again, _ = settled(proto)
    found, wanted = run(again, x), run(proto, x)
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted))


def test_no_products_are_added() -> None:
    geometries = ((2, 2), (4, 2), (3, 2), (5, 3), (3, 1))
    layers: list[Any] = [nn.ConvTranspose2d(4, 6, *geometry) for geometry in geometries]
    layers += [nn.ConvTranspose3d(4, 6, (3, 2, 2), 2), nn.ConvTranspose3d(4, 6, 4, 2, groups=2)]
    for layer in layers:
        shape = (1, 4, *[8] * (layer.weight.ndim - 2))
        source = open_model(nn.Sequential(layer).eval(), example_inputs=(torch.randn(shape),))
        (other,) = source.graph.weighted()
        weights = sum(piece.weight.size for piece in other.pieces)
        assert other.weight is not None and weights == other.weight.size
