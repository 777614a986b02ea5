"""Models for GPUs: what layers, layouts and epilogues have to get along with, in small."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nmcompile.sparsity import parse_pattern, project
from tests.support.seed_modules import randomised


class Residuals(nn.Module):
    """Basic blocks with a stride, a projected shortcut, a max pooling; channels with tails."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 7, stride=2, padding=3)
        self.first, self.second = (nn.Conv2d(20, 20, 3, padding=1) for _ in range(2))
        self.down = nn.Conv2d(20, 36, 3, stride=2, padding=1)
        self.last, self.short = nn.Conv2d(36, 36, 3, padding=1), nn.Conv2d(20, 36, 1, stride=2)
        self.head = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        x = functional.relu(self.second(functional.relu(self.first(x))) + x)
        x = functional.relu(self.last(functional.relu(self.down(x))) + self.short(x))
        return functional.softmax(self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1)), 1)


class Inverted(nn.Module):
    """Depthwise 3x3 and 5x5, squeeze and excitation, hard-swish; a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.expand, self.shrink = nn.Conv2d(16, 44, 1), nn.Conv2d(44, 16, 1)
        self.depth = nn.Conv2d(44, 44, 3, padding=1, groups=44)
        self.squeeze, self.excite = nn.Conv2d(44, 12, 1), nn.Conv2d(12, 44, 1)
        self.wide = nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.stem(x))
        y = functional.relu6(self.depth(functional.hardswish(self.expand(x))))
        gate = self.excite(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        x = self.shrink(y * functional.hardsigmoid(gate)) + x
        return functional.silu(self.grouped(functional.relu(self.wide(x))))


class Dense(nn.Module):
    """Concatenations of 3, 12 and 20 channels, poolings that round up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(15, 20, 3, padding=(0, 1), dilation=(1, 2))
        self.third = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = functional.relu(self.first(x))
        z = functional.pad(torch.cat([x, y], 1), (1, 1, 1, 1))
        z = torch.cat([y, functional.gelu(self.second(z))], 1)
        z = functional.avg_pool2d(z, 3, 2, 1, ceil_mode=True)
        z = torch.cat([self.third(z), z[:, :8]], 1)
        low = functional.interpolate(torch.tanh(z), scale_factor=2.0)
        padded = functional.pad(z, (1, 0, 0, 2), value=0.25)
        return torch.sigmoid(low), functional.max_pool2d(padded, 2, 2, ceil_mode=True)


class Odd(nn.Module):
    """What runs as in the model: layer norm, attention, matrix products of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.one, self.two = nn.Linear(16, 28), nn.Linear(28, 16)
        self.shuffled = nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = self.norm(x.flatten(2).transpose(1, 2))
        scores = functional.softmax(rows @ rows.transpose(1, 2) * 0.25, -1)
        rows = self.two(functional.gelu(self.one(scores @ rows))) + rows
        x = rows.transpose(1, 2).reshape(x.shape)
        x = x.reshape(x.shape[0], 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        spatial = torch.sigmoid(x.mean(1, keepdim=True))
        return functional.leaky_relu(self.shuffled(x * spatial) - x[:, :8, 1:-1, 1:-1], 0.1)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residuals, (2, 3, 33, 33)),
    "inverted": (Inverted, (1, 3, 20, 16)),
    "concatenated": (Dense, (1, 3, 11, 13)),
    "odd": (Odd, (2, 3, 20, 20)),
}


def pruned(model: nn.Module, pattern: str) -> nn.Module:
    """Random, trained-looking weights that hold the pattern wherever there are enough channels."""
    model = randomised(model)
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.weight.shape[1] < 12:
            continue
        weight = layer.weight.detach().numpy()
        with torch.no_grad():
            for position in np.ndindex(*weight.shape[2:]):
                at = (slice(None), slice(None), *position)
                part = project(np.ascontiguousarray(weight[at]), parse_pattern(pattern))
                layer.weight[at] = torch.from_numpy(part)
    return model
