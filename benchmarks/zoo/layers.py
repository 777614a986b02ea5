"""Layers that several models of the zoo are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.models import head

Act = Callable[[], nn.Module]


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size up to its stride, batch norm, activation if any."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: Act | None = nn.ReLU,
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2 * dilation, sides[1] // 2 * dilation)
        layers: list[nn.Module] = [
            nn.Conv2d(
                inputs, outputs, kernel, stride, padding, dilation, groups=groups, bias=False
            ),
            nn.BatchNorm2d(outputs),
        ]
        if act is not None:
            layers.append(act())
        super().__init__(*layers)


class Joined(nn.Module):
    """Branches over one input, one behind the other along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Added(nn.Module):
    """x + body(x), or shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.shortcut(x) + self.body(x)
        return added


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network makes of their means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, hidden: int, gate: Act = nn.Hardsigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.gate(x)
        return scaled


def classifier(features: int, classes: int) -> nn.Sequential:
    """Mean over the image, and a linear layer."""
    return nn.Sequential(*head(features, classes))
