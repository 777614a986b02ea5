"""The small training run that both implementations of a method take, and what is recorded of it.

All of it is in float64, and every number is drawn from numpy's `RandomState`, whose streams never
change: masks are then the same on every machine, and a difference between two of them is one
between methods, never one of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[Any]

CHANNELS, CLASSES, SIZE = 16, 4, 6
EPOCHS, STEPS, BATCH = 8, 4, 16
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
LAYERS = ("block.conv1", "block.conv2")  # those that get the pattern


@contextmanager
def float64() -> Iterator[None]:
    """Makes all that torch makes inside float64, in one thread."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


class Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + x), 3x3 convolutions."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + x)


class Net(nn.Module):
    """Input (N, 3, SIZE, SIZE); a stem, a block, perhaps with biases, a classifier."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.block: nn.Module = Block(bias)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.block(functional.relu(self.bn(self.stem(x)))).mean((2, 3)))
        return y


def drawn(seed: int, *shape: int) -> Tensor:
    """Numbers of a standard normal distribution."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def network() -> Net:
    """With weights of variance 2 / fan-in."""
    net = Net()
    with torch.no_grad():
        for seed, module in enumerate(net.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.copy_(drawn(seed, *module.weight.shape) * math.sqrt(2 / fan))
    nn.init.zeros_(net.fc.bias)
    return net


def branch_weight(layer: str) -> Tensor:
    """Initial weight of SpRe's second branch beside a layer."""
    shape = (CHANNELS, CHANNELS, 3, 3)
    return drawn(100 + LAYERS.index(layer), *shape) * math.sqrt(2 / (CHANNELS * 9))


def batch(index: int) -> tuple[Tensor, Tensor]:
    """Noisy copies of one image per class."""
    labels = torch.from_numpy(np.random.RandomState(1000 + index).randint(0, CLASSES, BATCH))
    images = drawn(999, CLASSES, 3, SIZE, SIZE)[labels]
    return images + drawn(2000 + index, BATCH, 3, SIZE, SIZE), labels


class Participant:
    """One implementation of a method at work on `network()`.

    model: what is trained, without its optimizer; optimizers step after the gradients are there.
    """

    model: Net
    optimizers: list[torch.optim.Optimizer]

    def begin(self, epoch: int) -> None:
        """At the start of an epoch."""

    def before_step(self) -> None:
        """Before a forward pass."""

    def after_backward(self) -> None:
        """Between the backward pass and the optimizer."""

    def masks(self) -> dict[str, Tensor]:
        """By layer: what the coming forward pass keeps, in the shape of the weight."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """Dense weights, scores and whatever else is trained, by name."""
        raise NotImplementedError


def sgd(parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of all runs; vectors do not decay."""
    decays: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters.values():
        decays[parameter.ndim > 1].append(parameter)
    groups = [{"params": p, "weight_decay": DECAY * decay} for decay, p in decays.items() if p]
    return torch.optim.SGD(groups, RATE, MOMENTUM)


Trace = dict[str, Array]
"""`mask <name>`: (epochs, *shape), bool, of the last forward pass of each epoch; `weight <name>`:
(epochs, 2), see `fingerprint`, after it."""


def train(who: Participant) -> Trace:
    """Train for EPOCHS epochs at a rate that falls as a cosine."""
    found: dict[str, list[Array]] = {}
    who.model.train()
    for epoch in range(EPOCHS):
        rate = RATE * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
        for group in (group for optimizer in who.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        who.begin(epoch)
        for step in range(STEPS):
            who.before_step()
            if step == STEPS - 1:
                for name, mask in who.masks().items():
                    found.setdefault(f"mask {name}", []).append(mask.numpy(force=True) != 0)
            images, labels = batch(epoch * STEPS + step)
            for optimizer in who.optimizers:
                optimizer.zero_grad()
            loss = functional.cross_entropy(who.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            who.after_backward()
            for optimizer in who.optimizers:
                optimizer.step()
        for name, weight in who.weights().items():
            found.setdefault(f"weight {name}", []).append(fingerprint(weight))
    return {name: np.stack(rows) for name, rows in found.items()}


def fingerprint(weight: Tensor) -> Array:
    """Two numbers that change with every element: the sum of magnitudes, and a projection."""
    flat = weight.numpy(force=True).astype(np.float64).ravel()
    return np.array([np.abs(flat).sum(), flat @ np.cos(np.arange(flat.size))])


def save(path: Path, trace: Trace, about: str, extra: dict[str, Array]) -> None:
    """Write a trace, masks as bits; `about` says where it comes from."""
    arrays = dict(extra)
    for name, rows in trace.items():
        if name.startswith("mask "):
            arrays[f"shape {name[5:]}"] = np.array(rows.shape)
            arrays[name] = np.packbits(rows)
        else:
            arrays[name] = rows
    np.savez_compressed(path, about=np.array(about), **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Trace:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name in [name for name in arrays if name.startswith("shape ")]:
        shape = tuple(arrays.pop(name))
        mask = f"mask {name[6:]}"
        arrays[mask] = np.unpackbits(arrays[mask], count=math.prod(shape)).reshape(shape) != 0
    return arrays
