"""Forms in which models exist: each gives what its own framework gives, or is refused by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import nmcompile
from nmcompile.errors import ModelError, NmcompileError, UnsupportedOperatorError, WeightError
from tests.conformance.test_torch import agrees, compiled, image
from tests.support.peer import by_peer

Array = npt.NDArray[Any]
SHAPE = (1, 4, 8, 8)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array] | None = None,
    *,
    shape: Sequence[int | str] = SHAPE,
    output: int = TensorProto.FLOAT,
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph from x to y."""
    graph = helper.make_graph(
        nodes,
        "forms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_onnxruntime(proto: onnx.ModelProto, x: Array) -> Array:
    return by_peer(proto, {"x": x})[0]


def by_us(proto: onnx.ModelProto, x: Array, folder: Path, **options: Any) -> Array:
    path = folder / "model.nmc"
    nmcompile.compile(proto, output=path, **options)
    (result,) = nmcompile.runtime.load(path, threads=1).run({"x": x}).values()
    assert isinstance(result, np.ndarray)
    return result


def same(
    proto: onnx.ModelProto, folder: Path, shape: Sequence[int] = SHAPE, **options: Any
) -> None:
    x = random(*shape, seed=1)
    found, wanted = by_us(proto, x, folder, **options), by_onnxruntime(proto, x)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")


def test_weights_among_the_inputs_of_an_old_file(tmp_path: Path) -> None:
    proto = model([CONV], {"w": random(8, 4, 3, 3)}, opset=8)
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (8, 4, 3, 3)))
    same(proto, tmp_path)


def test_open_dimensions_written_as_minus_one(tmp_path: Path) -> None:
    proto = model([CONV], {"w": random(8, 4, 3, 3)}, shape=("n", 4, "h", "w"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    with pytest.raises(NmcompileError, match=r"open shape \(\?, 4, h, w\)"):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")
    found = by_us(proto, random(*SHAPE), tmp_path, shapes={"x": SHAPE})
    assert found.shape == (1, 8, 6, 6)


def sparse(array: Array, name: str, *, linear: bool) -> onnx.SparseTensorProto:
    places = np.argwhere(array)
    joined = np.asarray(np.ravel_multi_index(tuple(places.T), array.shape))
    indices = joined if linear else places
    return helper.make_sparse_tensor(
        numpy_helper.from_array(array[tuple(places.T)], name),
        numpy_helper.from_array(indices.astype(np.int64), f"{name}.indices"),
        array.shape,
    )


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_weights_are_read_and_seen(linear: bool, tmp_path: Path) -> None:
    weight = random(8, 4, 3, 3) * (random(8, 4, 3, 3, seed=2) > 0.5)
    proto = model([CONV])
    proto.graph.sparse_initializer.append(sparse(weight, "w", linear=linear))
    dense = by_onnxruntime(model([CONV], {"w": weight}), x := random(*SHAPE, seed=1))
    np.testing.assert_allclose(by_us(proto, x, tmp_path), dense, rtol=1e-4, atol=1e-5)
    (layer,) = nmcompile.inspect(proto).layers
    assert layer.density == pytest.approx(np.count_nonzero(weight) / weight.size)


def test_constants_with_a_sparse_value_are_read(tmp_path: Path) -> None:
    weight = random(8, 4, 3, 3) * (random(8, 4, 3, 3, seed=2) > 0.5)
    constant = helper.make_node(
        "Constant", [], ["w"], sparse_value=sparse(weight, "v", linear=True)
    )
    dense = by_onnxruntime(model([CONV], {"w": weight}), x := random(*SHAPE, seed=1))
    found = by_us(model([constant, CONV]), x, tmp_path)
    np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-5)


def test_a_sparse_weight_with_an_index_outside_is_named(tmp_path: Path) -> None:
    proto = model([CONV])
    proto.graph.sparse_initializer.append(sparse(random(8, 4, 3, 3), "w", linear=True))
    indices = np.arange(8 * 4 * 9) + 7
    proto.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(indices))
    with pytest.raises(ModelError, match="sparse initializer w contradicts itself"):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")


def test_a_constant_without_elements_in_a_concatenation(tmp_path: Path) -> None:
    nodes = [CONV, helper.make_node("Concat", ["c", "z"], ["y"], axis=1)]
    nodes[0] = helper.make_node("Conv", ["x", "w"], ["c"])
    weights = {"w": random(8, 4, 3, 3), "z": np.zeros((1, 0, 6, 6), np.float32)}
    same(model(nodes, weights), tmp_path)


def branch(name: str, factor: float) -> onnx.GraphProto:
    return helper.make_graph(
        [
            helper.make_node("Conv", ["r", "w"], [f"{name}.c"]),
            helper.make_node("Mul", [f"{name}.c", "k"], [f"{name}.y"]),
        ],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(factor, np.float32), "k")],
    )


@pytest.mark.parametrize("channels", [4, 5])
def test_the_branch_that_the_shape_decides_on_is_taken(channels: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["d"]),
        helper.make_node("Equal", ["d", "channels"], ["same"]),
        helper.make_node(
            "If", ["same"], ["y"], then_branch=branch("a", 2.0), else_branch=branch("b", 3.0)
        ),
    ]
    weights = {"one": np.int64(1), "channels": np.int64(channels), "w": random(8, 4, 3, 3)}
    proto = model(nodes, {name: np.asarray(array) for name, array in weights.items()})
    same(proto, tmp_path)
    assert len(nmcompile.inspect(proto).layers) == 1


def test_a_branch_that_an_input_decides_on_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["same"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["same"], ["y"], then_branch=branch("a", 2.0), else_branch=branch("b", 3.0),
            name="choice",
        ),
    ]  # fmt: skip
    with pytest.raises(UnsupportedOperatorError, match=r"If \(node choice\)"):
        nmcompile.compile(model(nodes, {"w": random(8, 4, 3, 3)}), output=tmp_path / "m.nmc")


def test_a_shape_is_an_output(tmp_path: Path) -> None:
    same(model([helper.make_node("Shape", ["x"], ["y"])], output=TensorProto.INT64), tmp_path)


def test_a_weight_that_many_layers_share_is_stored_once(tmp_path: Path) -> None:
    nodes, value = [], "x"
    for index in range(6):
        nodes += [
            helper.make_node("Gemm", [value, "w"], [f"g{index}"], transB=1),
            helper.make_node("Tanh", [f"g{index}"], ["y" if index == 5 else f"t{index}"]),
        ]
        value = f"t{index}"
    weight = random(128, 128) / 8
    same(model(nodes, {"w": weight}, shape=(1, 128)), tmp_path, (1, 128))
    assert (tmp_path / "model.nmc").stat().st_size < 3 * weight.nbytes


def test_a_slope_per_channel_before_opset_7(tmp_path: Path) -> None:
    # Square images: read along the last axis, the slope would fit just as well.
    node, slope = helper.make_node("PRelu", ["x", "w"], ["y"]), random(8)
    proto = model([node], {"w": slope}, shape=(1, 8, 8, 8), opset=6)
    x = random(1, 8, 8, 8, seed=1)
    wanted = torch.prelu(torch.from_numpy(x), torch.from_numpy(slope))
    np.testing.assert_allclose(by_us(proto, x, tmp_path), wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "weights", "opset"),
    [
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"),
            {"s": np.array([1, 1, 1.6, 1.6], np.float32)},
            17,
        ),
        (
            helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="cubic", axes=[2, 3]),
            {"s": np.array([5, 11])},
            18,
        ),
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2],
                             auto_pad="SAME_LOWER"),
            {},
            17,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2],
                             output_shape=[17, 18]),
            {"w": random(4, 8, 3, 3)},
            17,
        ),
    ],
    ids=["fractional scales", "resized axes", "more padding before", "output_shape"],
)  # fmt: skip
def test_what_the_importer_gets_wrong_is_written_otherwise(
    node: onnx.NodeProto, weights: dict[str, Array], opset: int, tmp_path: Path
) -> None:
    same(model([node], weights, opset=opset), tmp_path)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (
            helper.make_node("RoiAlign", ["x", "rois", "places"], ["y"], name="n", mode="max"),
            r"RoiAlign \(node n\): expected its mode to be avg, found max",
        ),
        (
            helper.make_node("IsInf", ["x"], ["y"], name="n", detect_negative=0),
            r"IsInf \(node n\): expected its detect_negative to be 1, found 0",
        ),
        (
            helper.make_node("MaxPool", ["x"], ["y", "i"], name="n", kernel_shape=[2, 2]),
            r"MaxPool \(node n\): expected only its first output to be used",
        ),
    ],
    ids=["max of regions", "one sign of infinity", "indices"],
)
def test_what_is_not_right_is_refused_by_name(
    node: onnx.NodeProto, says: str, tmp_path: Path
) -> None:
    weights = {"rois": random(2, 4), "places": np.zeros(2, np.int64)}
    kind = TensorProto.BOOL if node.op_type == "IsInf" else TensorProto.FLOAT
    proto = model([node], weights if node.op_type == "RoiAlign" else {}, output=kind)
    if len(node.output) > 1:
        proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, None))
    with pytest.raises(UnsupportedOperatorError, match=says):
        nmcompile.compile(proto, output=tmp_path / "m.nmc")


# torch


def test_arguments_that_are_none_or_numbers_are_parts_of_the_model() -> None:
    def forward(x: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        return x * factor if mask is None else x * mask

    agrees(forward, image(2, 3), None, 3.0)


def test_outputs_that_are_none_are_left_out() -> None:
    agrees(lambda x: (x + 1, None, x * 2), image(2, 3))


def test_an_output_that_is_a_number_is_refused() -> None:
    with pytest.raises(ModelError, match=r"output 1 of the model is 3; expected a tensor"):
        compiled(lambda x: (x + 1, 3), image(2, 3))


def test_antialiasing_changes_rows_and_columns() -> None:
    resize = nn.functional.interpolate
    agrees(lambda x: resize(x, (11, 4), mode="bilinear", antialias=True), image(1, 2, 7, 9))


def test_nearest_keeps_the_first_of_four_elements() -> None:
    agrees(lambda x: nn.functional.interpolate(x, size=3, mode="nearest"), image(2, 3, 4))


def test_the_factor_of_a_sum_counts() -> None:
    agrees(lambda x, y: torch.sub(torch.add(x, y, alpha=-3), y, alpha=2), image(2, 3), image(3))


def test_indices_along_two_axes_are_taken_through_onnx() -> None:
    places = torch.tensor([0, 1])
    agrees(lambda x: x[:, places, :, places], image(2, 3, 4, 5))
    with pytest.raises(UnsupportedOperatorError, match=r"aten\.index\.Tensor .*found 2 of them"):
        compiled(lambda x: x[:, places, :, places], image(2, 3, 4, 5), rest="none")


def test_a_convolution_of_a_single_image() -> None:
    layer = nn.Conv2d(16, 16, 3)
    agrees(lambda x: layer(x), image(16, 9, 9))


def csr_linear() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr())
    return layer


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Lazy modules")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.LazyLinear(8), "parameter weight is not initialised"),
        (lambda: nn.Linear(16, 8, device="meta"), 'parameter weight is on the device "meta"'),
        (csr_linear, r"parameter weight is stored as torch\.sparse_csr.*to_dense"),
    ],
    ids=["lazy", "meta", "sparse"],
)
def test_parameters_without_plain_contents_are_named(make: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=says):
        nmcompile.compile(make(), output=tmp_path / "m.nmc", example_inputs=image(4, 16))


def test_rows_whose_keys_are_all_masked_give_zeros() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])

    def attend(query: Tensor, key: Tensor, kept: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, key, kept)

    agrees(attend, image(1, 2, 2, 4), image(1, 2, 3, 4), mask)


def test_an_index_outside_of_its_axis_gives_nan_and_reads_nothing(tmp_path: Path) -> None:
    table, path = nn.Embedding(5, 3).eval(), tmp_path / "model.nmc"
    nmcompile.compile(table, output=path, example_inputs=torch.tensor([0, 4]))
    session = nmcompile.runtime.load(path, threads=1)
    (found,) = session.run({session.inputs[0].name: np.array([4, 9])}).values()
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found[0], table.weight[4].detach().numpy())
    assert np.isnan(found[1]).all()


class Registers(nn.Module):
    """A vision transformer's tokens, of which this one has none."""

    def __init__(self) -> None:
        super().__init__()
        self.registers = nn.Parameter(torch.zeros(1, 0, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(torch.cat([self.registers.expand(len(x), -1, -1), x], 1))
        return y


def test_a_parameter_without_elements(tmp_path: Path) -> None:
    model, x = Registers().eval(), torch.randn(2, 3, 8)
    nmcompile.compile(model, output=tmp_path / "m.nmc", example_inputs=x)
    (found,) = nmcompile.runtime.load(tmp_path / "m.nmc", threads=1).run(x).values()
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)
