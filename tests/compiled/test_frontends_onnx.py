"""ONNX front end: what it accepts, what it refuses and how."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nmcompile.errors import ModelError, ShapeError, UnsupportedOperatorError, WeightError
from nmcompile.frontends import onnx_frontend, open_model
from nmcompile.passes.pipeline import run_pipeline
from tests.support.seed_modules import SeedNet, assert_close, export_onnx, randomised, run_onnx
from tests.support.seed_relax import relax_constants, run_relax


def conv_model(
    shape: list[int | str] | None = None, *, opset: int = 17, op: str = "Relu", domain: str = ""
) -> onnx.ModelProto:
    """Conv (8 x 4 x 3 x 3) and one unary operator; input x, output y."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 4, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="first"),
        helper.make_node(op, ["c"], ["y"], name="second", domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "conv_model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "conv.weight")],
    )
    opsets = [helper.make_opsetid("", opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def test_a_file_and_the_model_in_memory_open_alike(tmp_path: Path) -> None:
    proto = conv_model()
    for source in (open_model(proto), open_model(saved(proto, tmp_path / "m.onnx"))):
        assert source.kind == "onnx"
        assert source.inputs == (("x", (1, 4, 6, 6), "float32"),)
        assert source.outputs == ("y",)
        (layer,) = source.graph.layers()
        assert (layer.name, layer.op, layer.weight.shape) == ("conv", "conv2d", (8, 4, 3, 3))
        assert (layer.input_shape, layer.output_shape) == ((1, 4, 6, 6), (1, 8, 4, 4))
        assert layer.macs == 8 * 4 * 4 * 4 * 9


def test_the_users_model_is_not_changed() -> None:
    proto = export_onnx(randomised(SeedNet()), torch.randn(1, 3, 16, 16))
    before = proto.SerializeToString(deterministic=True)
    run_pipeline(open_model(proto).graph)
    assert proto.SerializeToString(deterministic=True) == before


def test_large_weights_reach_relax_and_stay_in_the_graph() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(300, 70))
    x = torch.randn(2, 3, 10, 10)
    proto = export_onnx(randomised(net), x)
    assert any(len(tensor.raw_data) > onnx_frontend.LARGE for tensor in proto.graph.initializer)
    source = open_model(proto)
    for _ in range(2):
        assert_close(run_relax(source.to_relax(), x), run_onnx(proto, x))
    assert_close(run_onnx(source.native(), x), run_onnx(proto, x))


def test_external_data_is_read(tmp_path: Path) -> None:
    proto, path = conv_model(), tmp_path / "m.onnx"
    onnx.save_model(
        proto, str(path), save_as_external_data=True, location="m.data", size_threshold=0
    )
    assert (tmp_path / "m.data").stat().st_size > 0
    source = open_model(path)
    x = torch.randn(1, 4, 6, 6)
    assert_close(run_onnx(source.native(), x), run_onnx(conv_model(), x))


def external(tmp_path: Path) -> tuple[Path, Path]:
    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    onnx.save_model(
        conv_model(), str(path), save_as_external_data=True, location="m.data", size_threshold=0
    )
    return path, data


def test_missing_external_data_names_the_file_and_the_weight(tmp_path: Path) -> None:
    path, data = external(tmp_path)
    data.unlink()
    with pytest.raises(ModelError, match=r"weight conv\.weight in the external file .*m\.data"):
        open_model(path)


def test_truncated_external_data_says_how_long_it_should_be(tmp_path: Path) -> None:
    path, data = external(tmp_path)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(
        ModelError, match=r"m\.data is truncated: expected at least 1152.*found 100"
    ):
        open_model(path)


def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path) -> None:
    path, data = external(tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    proto = onnx.load_model(str(path), load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../m.data"
    assert data.is_file()
    with pytest.raises(ModelError, match="external file"):
        open_model(saved(proto, inner / "m.onnx"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx cannot be read: No such file"):
        open_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x89PNG\r\n\x1a\n" * 9, bytes(64)])
def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model file .*x\.onnx is not an ONNX model"):
        open_model(path)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    content, path = conv_model().SerializeToString(), tmp_path / "cut.onnx"
    # The operator sets stand at the end; what is cut before them is no model.
    for length in range(0, len(content) - 8, 37):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            open_model(path)


def test_an_open_shape_names_the_input_and_the_option() -> None:
    with pytest.raises(ShapeError, match=r"input x .*\(n, 4, h, \?\).*shapes={'x': \(1, 4, "):
        open_model(conv_model(["n", 4, "h", None]))  # type: ignore[list-item]


def test_shapes_fix_what_is_open() -> None:
    source = open_model(conv_model(["n", 4, "h", "w"]), shapes={"x": (2, 4, 5, 7)})
    assert source.inputs[0][1] == (2, 4, 5, 7)
    assert source.graph.layers()[0].output_shape == (2, 8, 3, 5)


@pytest.mark.parametrize("shape", [(1, 3, 6, 6), (1, 4, 6), (1, 4, 6, 6, 1)])
def test_a_contradicting_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"declared as \(n, 4, 6, 6\).*contradicts"):
        open_model(conv_model(["n", 4, 6, 6]), shapes={"x": shape})


def test_a_shape_for_an_unknown_input_lists_the_inputs() -> None:
    with pytest.raises(ShapeError, match="has no input z: expected one of x"):
        open_model(conv_model(), shapes={"z": (1,)})


def test_a_dimension_of_zero_is_refused() -> None:
    with pytest.raises(ShapeError, match="dimensions of at least 1"):
        open_model(conv_model(["n", 4, 6, 6]), shapes={"x": (0, 4, 6, 6)})


@pytest.mark.parametrize("opset", [9, 10])
def test_older_operator_sets_are_converted(opset: int) -> None:
    proto = conv_model(opset=opset)
    source = open_model(proto)
    assert source.native().opset_import[0].version == 11
    x = torch.randn(1, 4, 6, 6)
    assert_close(run_onnx(source.native(), x), run_onnx(proto, x))


def test_an_operator_that_onnx_does_not_have_is_named() -> None:
    with pytest.raises(UnsupportedOperatorError, match="node second has the operator Relux"):
        open_model(conv_model(op="Relux"))


def test_an_operator_of_another_domain_is_named_at_import() -> None:
    source = open_model(conv_model(op="Swizzle", domain="com.example"), shapes=None)
    with pytest.raises(UnsupportedOperatorError, match=r"Swizzle \(node second\)"):
        source.to_relax()


def test_an_operator_that_fails_at_import_is_named() -> None:
    proto = conv_model()
    node = helper.make_node("TopK", ["c", "k"], ["y", "i"], name="third", axis=1)
    proto.graph.node[1].CopyFrom(node)
    proto.graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    with pytest.raises(UnsupportedOperatorError, match=r"TopK \(node third\)"):
        open_model(proto).to_relax()


def test_an_invalid_graph_is_refused() -> None:
    proto = conv_model()
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        open_model(proto)


def test_relax_computes_what_onnxruntime_does_with_the_weights_of_the_layers() -> None:
    torch.manual_seed(0)
    proto, x = (
        export_onnx(randomised(SeedNet()), torch.randn(2, 3, 16, 16)),
        torch.randn(2, 3, 16, 16),
    )
    source = open_model(proto)
    run_pipeline(source.graph)
    module = source.to_relax()
    found = relax_constants(module)
    for layer in source.graph.layers():
        assert layer.weight.tobytes() in found, layer.name
    assert_close(run_relax(module, x), run_onnx(proto, x))


def in_precision(elem_type: int, *, stored_only: bool = False) -> onnx.ModelProto:
    """`conv_model` in another precision, or with the weight cast back to float32."""
    proto = conv_model(opset=22)  # the first with bfloat16 convolutions
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    converted = onnx.helper.make_tensor(
        "conv.weight", elem_type, weight.shape, weight.reshape(-1).tolist()
    )
    proto.graph.initializer[0].CopyFrom(converted)
    if stored_only:
        node = helper.make_node("Cast", ["conv.weight"], ["w"], to=TensorProto.FLOAT)
        proto.graph.node.insert(0, node)
        proto.graph.node[1].input[1] = "w"
        return proto
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = elem_type
    return proto


def test_double_precision_names_the_input() -> None:
    source = open_model(in_precision(TensorProto.DOUBLE))
    with pytest.raises(ModelError, match=r"input x is float64; expected float32.*model\.float"):
        source.to_relax()


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_names_the_layer(elem_type: int) -> None:
    source = open_model(in_precision(elem_type))
    run_pipeline(source.graph)
    with pytest.raises(WeightError, match=r"layer conv: its weight is b?float16; expected float32"):
        source.to_relax()


def test_a_weight_that_is_only_stored_in_half_precision_is_converted() -> None:
    proto, x = in_precision(TensorProto.FLOAT16, stored_only=True), torch.randn(1, 4, 6, 6)
    source = open_model(proto)
    run_pipeline(source.graph)
    assert_close(run_relax(source.to_relax(), x), run_onnx(proto, x))


def test_padding_that_the_exporter_computes_hides_no_shape() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(nn.functional.pad(x, (0, 1, 0, 1)))
            return y

    source = open_model(export_onnx(Padded().eval(), torch.randn(1, 3, 15, 15)))
    run_pipeline(source.graph)
    (layer,) = source.graph.layers()
    assert (layer.input_shape, layer.output_shape) == ((1, 3, 16, 16), (1, 8, 7, 7))


def test_matmul_weights_are_read_as_output_by_input() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (layer,) = open_model(proto).graph.layers()
    assert layer.op == "linear" and np.array_equal(layer.weight, weight.T)
    assert layer.macs == 2 * 3 * 4


@pytest.mark.parametrize("model", [3, object(), nn.Linear, {"state_dict": 1}])
def test_an_object_that_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ModelError, match="cannot open an object of type"):
        open_model(model)


def test_onnx_models_need_no_torch(tmp_path: Path) -> None:
    path = saved(conv_model(), tmp_path / "m.onnx")
    code = (
        "import sys; from nmcompile.frontends import open_model; "
        "from nmcompile.passes.pipeline import run_pipeline; "
        f"run_pipeline(open_model({str(path)!r}).graph); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
