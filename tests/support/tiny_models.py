"""A small trained-looking model, and small ONNX graphs, that compile in about a second."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from nmcompile.sparsity import parse_pattern, project
from tests.support.seed_modules import randomised

SHAPE = (1, 3, 16, 16)
CLASSES = 10


class TinyNet(nn.Module):
    """Stem, a pruned 3x3 and a pruned 1x1 convolution with batch norm, residual, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.narrow = nn.Conv2d(16, 16, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm0(self.stem(x)))
        y = functional.relu(self.norm1(self.wide(x)))
        x = functional.relu(self.norm2(self.narrow(y)) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def tiny_net(pattern: str = "dense", density: float | None = None) -> TinyNet:
    """Seeded weights; the convolutions behind the stem have the pattern."""
    torch.manual_seed(0)
    model = randomised(TinyNet())
    for layer in (model.wide, model.narrow):
        weight = layer.weight.detach().numpy()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(project(weight, parse_pattern(pattern), density)))
    return model


def example(shape: Sequence[int] = SHAPE, seed: int = 1) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def conv_weight(outputs: int = 16, inputs: int = 16, kernel: int = 3) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32)


def conv_onnx(
    weight: np.ndarray[Any, Any],
    *,
    batch: int | str = 1,
    groups: int = 1,
    tail: str = "Relu",
    domain: str = "",
    batch_norm: bool = False,
) -> onnx.ModelProto:
    """x -> Conv "conv1" (no padding) [-> BatchNormalization] -> `tail` "tail1" -> y, 8x8 images."""
    channels = max(weight.shape[1], 1) * max(groups, 1)
    weights = {"w": weight}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv1", group=groups)]
    if batch_norm:
        names = ["scale", "bias", "mean", "var"]
        nodes.append(helper.make_node("BatchNormalization", ["c", *names], ["n"], name="norm1"))
        for index, name in enumerate(names):
            weights[name] = np.linspace(0.5, 1 + index, len(weight), dtype=np.float32)
    nodes.append(helper.make_node(tail, nodes[-1].output, ["y"], name="tail1", domain=domain))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
