"""Small networks in which channels meet in every way: sums, concatenations, gates, flattening."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.seed_modules import randomised


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A basic block or, with three layers, a bottleneck; a projection where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, layers: int = 2) -> None:
        super().__init__()
        kernels = [3, 3] if layers == 2 else [1, 3, 1]
        widths = [inputs, *[16] * (layers - 1), outputs]
        self.layers = nn.ModuleList(
            conv_bn(widths[i], widths[i + 1], kernel, stride if i == layers - 2 else 1)
            for i, kernel in enumerate(kernels)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index, layer in enumerate(self.layers):
            y = layer(y if index == 0 else functional.relu(y))
        return functional.relu(y + self.shortcut(x))


class Head(nn.Module):
    """Global average, one hidden layer, classifier."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(inputs, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(functional.relu(self.hidden(x.mean((2, 3)))))
        return y


def residual(layers: int = 2) -> nn.Module:
    blocks = [Block(24, 24, 1, layers), Block(24, 32, 2, layers), Block(32, 32, 1, layers)]
    return nn.Sequential(conv_bn(3, 24), nn.ReLU(), *blocks, Head(32))


class Dense(nn.Module):
    """DenseNet: batch norm and ReLU before each convolution, which reads all maps so far."""

    def __init__(self, first: int = 16, growth: int = 10) -> None:
        super().__init__()
        widths = [first + growth * i for i in range(3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths)
        self.norm = nn.BatchNorm2d(first + 3 * growth)
        self.transition = nn.Conv2d(first + 3 * growth, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            maps.append(conv(functional.relu(norm(torch.cat(maps, 1)))))
        y: Tensor = self.transition(functional.relu(self.norm(torch.cat(maps, 1))))
        return functional.avg_pool2d(y, 2)


class Inverted(nn.Module):
    """An inverted residual with squeeze-and-excitation, as in MobileNetV3."""

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.expand, self.project = conv_bn(width, hidden, 1), conv_bn(hidden, width, 1)
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        )
        self.squeeze, self.excite = nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.depthwise(functional.relu6(self.expand(x))))
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))
        z: Tensor = self.project(y * functional.hardsigmoid(self.excite(gate))) + x
        return z


class Encoder(nn.Module):
    """A skip connection around a smaller image; paddings, PReLU, scales, a gate of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 24, 3, 2), nn.Conv2d(40, 16, 1)
        self.slope, self.scale = nn.PReLU(24), nn.Parameter(torch.rand(1, 24, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(24, 1, 1))
        self.attend = nn.Conv2d(16, 1, 3, padding=1)
        self.plain = torch.rand(1, 16, 1, 1)  # neither a parameter nor a buffer

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.down(functional.pad(x, (0, 1, 1, 0)))) * self.scale + self.shift
        y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
        z = functional.silu(self.up(torch.cat([x, y], 1))) * self.plain
        return z * torch.sigmoid(self.attend(z)) + 0.5 * x


class Flat(nn.Module):
    """Convolution, flattened image, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.one, self.two, self.fc = nn.Linear(128, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.flatten(functional.max_pool2d(self.conv(x).relu(), 2), 1)
        logits: Tensor = self.fc(self.two(self.norm(self.one(y)).tanh()).relu())
        return logits


class Shuffle(nn.Module):
    """ShuffleNetV2: half of the channels pass, then the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.branch = nn.Conv2d(16, 16, 1), nn.Conv2d(8, 8, 1)
        self.after, self.grouped = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 3, padding=1, groups=2)
        self.last, self.free = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.before(x).chunk(2, 1)
        y = torch.cat([one, self.branch(two)], 1)
        batch, channels, height, width = y.shape
        y = y.reshape(batch, 2, channels // 2, height, width).transpose(1, 2)
        y = self.grouped(self.after(y.reshape(batch, channels, height, width)))
        z: Tensor = self.free(self.last(y).relu())
        return z


class Shared(nn.Module):
    """One convolution called twice, two with one weight, and sums that mix them up."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.two = (nn.Conv2d(16, 16, 1) for _ in range(3))
        self.two.weight = self.one.weight
        self.free, self.last = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(x).relu()).relu()
        z: Tensor = self.last(self.free(self.one(y) + self.two(y.sigmoid())).relu())
        return z


def stem(body: nn.Module, outputs: int = 16, head: nn.Module | None = None) -> nn.Module:
    layers = [conv_bn(3, outputs), nn.ReLU(), body]
    return nn.Sequential(*layers, *([head] if head is not None else []))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": residual,
    "bottleneck": lambda: residual(3),
    "dense": lambda: stem(Dense(), 16, Head(24)),
    "inverted": lambda: stem(nn.Sequential(Inverted(), Inverted()), 16, Head(16)),
    "encoder": lambda: stem(Encoder(), 16, Head(16)),
    "flat": lambda: stem(Flat()),
    "shuffle": lambda: stem(Shuffle(), 16, Head(16)),
    "shared": lambda: stem(Shared(), 16, Head(16)),
}
"""Input (N, 3, 8, 8), output (N, 5)."""

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def network(name: str) -> nn.Module:
    """In eval mode, with batch norm statistics that are not the neutral ones."""
    torch.manual_seed(0)
    return randomised(NETWORKS[name]())
