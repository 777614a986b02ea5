"""What `nmcompile.quantize` rounds in a transformer: what products with constants read."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmcompile import quantize
from tests.support.attention_models import VisionTransformer
from tests.support.seed_modules import Array, export_onnx

SHAPE = (2, 3, 8, 8)
FLOAT = {"Softmax", "LayerNormalization", "Erf", "Sqrt", "Tanh", "Gelu"}


class SpelledNorm(nn.Module):
    """A layer norm as ONNX has it before opset 17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.rand(width) + 0.5),
            nn.Parameter(torch.randn(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
        return centred / spread * self.scale + self.shift


class Mixer(nn.Module):
    """Tokens through a layer with each function, around a norm that is spelled out."""

    def __init__(self, curve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 32), nn.Linear(32, 48)
        self.norm, self.head, self.curve = SpelledNorm(48), nn.Linear(48, 5), curve

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 4, 48)
        x = x + self.second(self.curve(self.first(x)))
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def tangent(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: VisionTransformer("fused"),
    "separate": lambda: VisionTransformer("separate"),
    "torch": lambda: VisionTransformer("torch"),
    "gelu": lambda: Mixer(functional.gelu),
    "tangent": lambda: Mixer(tangent),
}


def images(count: int, seed: int, shape: tuple[int, ...] = SHAPE) -> Array:
    """So many runs of the model."""
    made = np.random.default_rng(seed).normal(size=(count * shape[0], *shape[1:]))
    return made.astype(np.float32)


def run(proto: onnx.ModelProto, x: Array) -> Array:
    """Without optimisations: on a CPU without VNNI, sums of integers would saturate."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return np.asarray(session.run(None, {"x": x})[0])


def read_by(model: onnx.ModelProto, kind: str) -> list[set[str]]:
    """For each node of a kind, of what kinds are the nodes that read it."""
    return [
        {n.op_type for n in model.graph.node if set(node.output) & set(n.input)}
        for node in model.graph.node
        if node.op_type == kind
    ]


@pytest.mark.parametrize("name", MODELS)
def test_only_what_layers_read_is_rounded(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    made = quantize(export_onnx(model, torch.zeros(SHAPE)), images(6, 0))
    assert not made.report.kept
    assert FLOAT & {node.op_type for node in made.model.graph.node}
    assert all(
        kinds <= {"Conv", "Gemm", "MatMul"} for kinds in read_by(made.model, "DequantizeLinear")
    )
    x = images(1, 3)
    found, expected = run(made.model, x), model(torch.from_numpy(x)).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_integers_of_a_rectified_layer_go_on_to_the_next() -> None:
    """Without a norm or attention beside it: the function becomes a part of the range."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    made = quantize(export_onnx(model, torch.zeros(2, 8, 8)), images(6, 0, (2, 8, 8)))
    kinds = [node.op_type for node in made.model.graph.node]
    assert kinds.count("QuantizeLinear") == 2 and kinds.count("MatMul") == 2
