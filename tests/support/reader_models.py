"""A network of the documentation's readers, who have this file as `my_models.py`."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Network(nn.Module):
    """Two layers of one kind between a stem and a classifier; input (N, 3, H, W)."""

    def __init__(self, layer: Callable[..., nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1 = layer(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = layer(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(functional.relu(self.stem(x)))))
        y: torch.Tensor = self.fc(functional.relu(self.conv2(x)).mean((2, 3)))
        return y


network = Network
