"""A model that is quantised for several shapes: the same integers in all of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from nmcompile import Quantization
from nmcompile.errors import ModelError
from nmcompile.quantization.quantize import quantize_sets
from tests.plain.test_quantization import Mixed, noise, run
from tests.support.seed_modules import Array, randomised

SHAPES = [{"x": (2, 3, 12, 12)}, {"x": (5, 3, 12, 12)}, {"x": (2, 3, 16, 12)}]


class Growing(nn.Module):
    """Another model for larger batches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.relu() if len(x) < 4 else y.sigmoid()


def samples(count: int, *shape: int) -> Array:
    return np.random.default_rng(count).standard_normal((count, *shape)).astype(np.float32)


def integers(proto: onnx.ModelProto) -> list[Array]:
    stored = map(numpy_helper.to_array, proto.graph.initializer)
    return [array for array in stored if array.dtype in (np.int8, np.uint8, np.int32)]


def test_every_shape_has_the_same_integers_and_scales() -> None:
    model = randomised(Mixed()).eval()
    settings = Quantization(keep_float=("stem",))
    protos, report = quantize_sets(model, samples(24, 3, 12, 12), SHAPES, quantization=settings)
    assert [layer.name for layer in report.layers if layer.precision == "float32"] == ["stem"]
    first = protos[0]
    for proto, shapes in zip(protos, SHAPES, strict=True):
        assert [list(node.input) for node in proto.graph.node] == [
            list(node.input) for node in first.graph.node
        ]
        found, wanted = integers(proto), integers(first)
        assert len(found) == len(wanted) > 8
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        x = samples(shapes["x"][0], *shapes["x"][1:])
        with torch.no_grad():
            assert noise(run(proto, x), model(torch.from_numpy(x)).numpy()) > 20


def test_a_model_that_is_another_for_one_of_the_shapes_is_refused() -> None:
    with pytest.raises(ModelError, match=r"another model for x=5,3,12,12 than for x=2,3,12,12.*"):
        quantize_sets(Growing().eval(), samples(8, 3, 12, 12), SHAPES[:2])
