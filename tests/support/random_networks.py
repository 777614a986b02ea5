"""Networks of random operators, for properties that must hold for all."""

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.seed_modules import randomised

Step = tuple[str, list[int]]


class Random(nn.Module):
    """Operators on a growing list of tensors (N, C, 8, 8); input (N, 3, 8, 8), output (N, 4)."""

    def __init__(self, seed: int, length: int = 14) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleDict()
        self.steps: list[Step] = []
        widths = [3]
        for index in range(length):
            kind = "conv" if index < 2 else draw.choice(list(_MAKERS))
            operands = [draw.randrange(max(0, len(widths) - 4), len(widths))]
            width = widths[operands[0]]
            same = [i for i, other in enumerate(widths) if other == width and i]
            if kind in ("add", "gate", "stack", "maximum"):
                pool = range(len(widths)) if kind == "stack" else same or [operands[0]]
                operands.append(draw.choice(list(pool)))
            if kind == "grouped" and width % 2:
                kind = "relu"
            if kind == "half" and width % 2:
                kind = "flip"
            outputs = draw.choice([4, 6, 8, 8, 8, 12])
            made, width = _MAKERS[kind](width, outputs, sum(widths[i] for i in operands))
            if made is not None:
                self.layers[str(index)] = made
            self.steps.append((kind, operands))
            widths.append(width)
        self.fc = nn.Linear(widths[-1] * 4, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for index, (kind, operands) in enumerate(self.steps):
            read = [found[i] for i in operands]
            layer = self.layers[str(index)] if str(index) in self.layers else None
            found.append(_apply(kind, layer, read))
        y: Tensor = self.fc(functional.adaptive_avg_pool2d(found[-1], 2).flatten(1))
        return y


class Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.two(functional.relu(self.one(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


Maker = Callable[[int, int, int], tuple[nn.Module | None, int]]

_MAKERS: dict[str, Maker] = {
    "conv": lambda width, out, all_: (nn.Conv2d(width, out, 3, padding=1), out),
    "point": lambda width, out, all_: (nn.Conv2d(width, out, 1), out),
    "depthwise": lambda width, out, all_: (
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        width,
    ),
    "grouped": lambda width, out, all_: (nn.Conv2d(width, 8, 1, groups=2), 8),
    "norm": lambda width, out, all_: (nn.BatchNorm2d(width), width),
    "relu": lambda width, out, all_: (None, width),
    "prelu": lambda width, out, all_: (nn.PReLU(width), width),
    "squeeze": lambda width, out, all_: (Squeeze(width), width),
    "scale": lambda width, out, all_: (Scale(width), width),
    "pool": lambda width, out, all_: (nn.MaxPool2d(3, 1, 1), width),
    "add": lambda width, out, all_: (None, width),
    "gate": lambda width, out, all_: (None, width),
    "maximum": lambda width, out, all_: (None, width),
    "stack": lambda width, out, all_: (None, all_),
    "half": lambda width, out, all_: (None, width // 2),
    "flip": lambda width, out, all_: (None, width),
}


def _apply(kind: str, layer: nn.Module | None, read: list[Tensor]) -> Tensor:
    if layer is not None:
        y: Tensor = layer(read[0])
        return y
    if kind == "relu":
        return read[0].relu()
    if kind == "add":
        return read[0] + read[1]
    if kind == "gate":
        return read[0] * read[1].sigmoid()
    if kind == "maximum":
        return torch.maximum(read[0], read[1])
    if kind == "stack":
        return torch.cat(read, 1)
    return read[0].chunk(2, 1)[1] if kind == "half" else read[0].flip(1)
