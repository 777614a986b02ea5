"""Small networks for handwritten digits, the digits, and the loop that trains by any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Residual, conv_bn
from nmcompile.train import Method

BATCH = 64
SHOWN = 500  # images at a time where nothing is trained

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images (n, c, h, w) to others of the same shape, by chance."""


def digits() -> tuple[Tensor, Tensor]:
    """1797 images (N, 1, 16, 16), twice their original size, and their labels, shuffled."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16 - 0.3
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = functional.interpolate(images[order], scale_factor=2.0, mode="bilinear")
    return images, torch.tensor(data.target, dtype=torch.int64)[order]


def digits_net() -> nn.Module:
    """A residual CNN for 16x16 grey images and ten classes."""
    body = nn.Sequential(conv_bn(64, 64, 3), conv_bn(64, 64, 3, act=False))
    return nn.Sequential(
        conv_bn(1, 32, 3),
        conv_bn(32, 64, 3, stride=2),
        Residual(body, nn.Identity(), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Patches(nn.Module):
    """Images (N, channels, size, size) as patches (N, count, width), each with its position."""

    def __init__(self, channels: int, size: int, side: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, side, side)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // side) ** 2, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.projection(x).flatten(2).transpose(1, 2) + self.positions
        return y


class TokenMean(nn.Module):
    """(N, count, width) to (N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def digits_vit() -> nn.Module:
    """A vision transformer for 16x16 grey images and ten classes: 16 patches, 3 layers, 4 heads."""
    width = 64
    layers = [
        nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(3)
    ]
    head = [nn.LayerNorm(width), TokenMean(), nn.Linear(width, 10)]
    return nn.Sequential(Patches(1, 16, 4, width), *layers, *head)


def shift(
    images: Tensor, generator: torch.Generator, by: int, background: float, mirror: bool = False
) -> Tensor:
    """Each image moved by up to `by` pixels each way, and half of them mirrored."""
    count, _, size, _ = images.shape
    padded = functional.pad(images, (by,) * 4, value=background)
    down, right = torch.randint(0, 2 * by + 1, (2, count, 1), generator=generator)
    places = torch.arange(size)
    rows, columns = down + places, right + places
    if mirror:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = right + torch.where(mirrored, size - 1 - places, places)
    index = torch.arange(count)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]
    return padded[index].movedim(3, 1)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Digits, each moved by up to two pixels each way."""
    return shift(images, generator, 2, float(images.min()))


def _epochs(count: int, size: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Indices of the whole batches of one epoch after another, `size` images in each.

    No image comes twice before all have come.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        order, waiting = waiting[:size], waiting[size:]
        yield [order[at : at + BATCH] for at in range(0, size - BATCH + 1, BATCH)]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    size: int | None = None,
    method: Method | None = None,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    rate: float = 0.1,
    seed: int = 0,
    augment: Augment | None = None,
    on_epoch: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train in place on a cosine schedule; returns the model in evaluation mode.

    `method` has prepared the model. An epoch has `size` images, by default all. Batch norms and
    biases do not decay.
    """
    generator = torch.Generator().manual_seed(seed)
    size = len(images) if size is None else size
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        decays[parameter.ndim > 1].append(parameter)
    weight_decay = 5e-4 if optimizer == "sgd" else 0.05
    groups = [{"params": p, "weight_decay": weight_decay * decay} for decay, p in decays.items()]
    steps = epochs * (size // BATCH)
    step: torch.optim.Optimizer = (
        torch.optim.SGD(groups, rate, 0.9, nesterov=True)
        if optimizer == "sgd"
        else torch.optim.AdamW(groups, rate)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(step, steps)
    model.train()
    for epoch, batches in zip(range(epochs), _epochs(len(images), size, generator), strict=False):
        if method is not None:
            method.on_epoch(epoch, epochs)
        for index in batches:
            if method is not None:
                method.on_step()
            shown = images[index] if augment is None else augment(images[index], generator)
            step.zero_grad()
            loss = functional.cross_entropy(model(shown), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            step.step()
            schedule.step()
        on_epoch()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that are recognised."""
    with torch.no_grad():
        found = torch.cat([model(some).argmax(1) for some in torch.split(images, SHOWN)])
    return float((found == labels).float().mean())
