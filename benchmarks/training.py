"""The demo's training code: SpRe over N:M SR-STE, and uniform 1xN block pruning, on small CNNs.

Written from the papers: SR-STE (Zhou et al., ICLR 2021), SpRe (Zhang et al., TPAMI 2025) and SUBP
(Xiang et al., NeurIPS 2023). Weights are OIHW; groups of N:M run along the input channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Residual

DECAY = 2e-4  # of pruned weights, SR-STE's lambda


def nm_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """1 for the n largest of every m weights along the input channels at a kernel position."""
    order = weight.detach().abs().permute(0, 2, 3, 1)
    largest = order.reshape(-1, m).topk(n, dim=1).indices
    mask = torch.zeros(order.numel() // m, m).scatter_(1, largest, 1.0)
    return mask.reshape(order.shape).permute(0, 3, 1, 2).contiguous()


class _SrSte(torch.autograd.Function):
    """weight * mask, whose gradient reaches pruned weights too and makes them shrink."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradients[0] + DECAY * (1 - mask) * weight, None


def spatial_mask(weight: Tensor, density: float) -> Tensor:
    """SpRe's S, kh x kw: 1 where unstructured pruning would keep more than the average.

    Args:
        weight: OIHW, not masked.
        density: share of weights that unstructured magnitude pruning keeps.
    """
    size = weight.detach().abs()
    kept = size >= size.flatten().kthvalue(size.numel() - int(density * size.numel()) + 1).values
    share = kept.float().mean((0, 1))
    return (share > kept.float().mean()).float()


class SpReConv(nn.Module):
    """A normalised N:M 3x3 convolution and, while training, a second branch inside its support.

    y = BN1(conv(x, w1')) + BN2(conv(x, w2 * (w1' != 0) * S)), with w1' the N:M-masked w1.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, stride: int = 1, n: int = 2, m: int = 4) -> None:
        super().__init__()
        self.n, self.m, self.stride = n, m, stride
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.conv_rep = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn_rep = nn.BatchNorm2d(outputs)
        self.register_buffer("mask", torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        if self.training:
            self.mask.copy_(spatial_mask(weight, self.n / self.m))
        support = nm_mask(weight, self.n, self.m)
        main: Tensor = _SrSte.apply(weight, support)  # type: ignore[no-untyped-call]
        second = self.conv_rep.weight * support * self.mask
        y: Tensor = self.bn(functional.conv2d(x, main, None, self.stride, 1))
        z: Tensor = self.bn_rep(functional.conv2d(x, second, None, self.stride, 1))
        return y + z


class BlockConv(nn.Module):
    """A normalised 3x3 convolution pruned in blocks of N output channels x one input channel.

    Every group of N outputs keeps the same number of blocks. `update` chooses the mask anew;
    between updates gradients reach the pruned blocks too (the "soft" form), so they can come back.
    """

    mask: Tensor

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, n: int = 16, pruned: float = 0.5
    ) -> None:
        super().__init__()
        self.n, self.pruned, self.stride = n, pruned, stride
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.register_buffer("mask", torch.ones_like(self.conv.weight))

    @torch.no_grad()
    def update(self, progress: float, generator: torch.Generator, tau: float = 0.5) -> None:
        """Prune the lowest blocks by L1, then regrow some of them by chance.

        Args:
            progress: 0 at the start of training, where all come back, to 1, where none does.
            generator: what is drawn from.
            tau: temperature of the draw; high values make it uniform.
        """
        outputs, inputs = self.conv.weight.shape[:2]
        scores = self.conv.weight.abs().sum((2, 3)).reshape(outputs // self.n, self.n, inputs)
        scores = scores.sum(1)
        scores = scores / scores.mean(1, keepdim=True)
        count = int(self.pruned * inputs)
        lowest = scores.topk(count, dim=1, largest=False).indices
        keep = torch.ones_like(scores).scatter_(1, lowest, 0.0)
        regrown = int(count * (1 - progress) ** 3)
        if regrown:
            chances = torch.softmax(scores.gather(1, lowest) / tau, dim=1)
            chosen = torch.multinomial(chances, regrown, generator=generator)
            keep.scatter_(1, lowest.gather(1, chosen), 1.0)
        blocks = keep.repeat_interleave(self.n, 0)
        self.mask.copy_(blocks[:, :, None, None].expand_as(self.mask))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            weight = _SrSte.apply(self.conv.weight, self.mask)  # type: ignore[no-untyped-call]
        else:
            weight = self.conv.weight * self.mask
        y: Tensor = self.bn(functional.conv2d(x, weight, None, self.stride, 1))
        return y


def digits_net(conv: Callable[[int, int, int], nn.Module]) -> nn.Module:
    """A residual CNN for 16x16 grey images and ten classes; `conv(inputs, outputs, stride)`."""
    body = nn.Sequential(conv(64, 64, 1), nn.ReLU(), conv(64, 64, 1))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(conv(32, 64, 2), nn.ReLU()),
        Residual(body, nn.Identity(), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Indices of whole batches, in a new order."""
    order = torch.randperm(count, generator=generator)
    return [order[at : at + size] for at in range(0, count - size + 1, size)]


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int = 0,
    on_epoch: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train in place with SGD on a cosine schedule; returns the model in evaluation mode.

    The masks of `BlockConv` layers are final after three quarters of the epochs.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [module for module in model.modules() if isinstance(module, BlockConv)]
    batch, last = 64, 3 * epochs // 4
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(epochs):
        for block in blocks if epoch <= last else []:
            block.update(epoch / last if last else 1.0, generator)
        for index in _batches(len(images), batch, generator):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[index]), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        on_epoch()
    return model.eval()
