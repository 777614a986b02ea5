"""Models that make images of images: segments, regions of text, larger images, flow, poses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import residual_stages
from benchmarks.zoo.layers import Added, ConvNorm


class UNet(nn.Module):
    """Down by pooling and up by transposed convolutions, with the details joined on the way up."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        inputs, down = 3, []
        for width in widths:
            down.append(nn.Sequential(ConvNorm(inputs, width, 3), ConvNorm(width, width, 3)))
            inputs = width
        self.down = nn.ModuleList(down)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, thin, 2, 2) for wide, thin in pairs)
        self.join = nn.ModuleList(
            nn.Sequential(ConvNorm(2 * thin, thin, 3), ConvNorm(thin, thin, 3)) for _, thin in pairs
        )
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        details = []
        for index, stage in enumerate(self.down):
            x = stage(x if index == 0 else functional.max_pool2d(x, 2))
            details.append(x)
        for up, join, detail in zip(self.up, self.join, details[-2::-1], strict=True):
            x = join(torch.cat([detail, up(x)], 1))
        y: Tensor = self.last(x)
        return y


def unet(widths: Sequence[int] = (32, 64, 128, 256, 512), classes: int = 2) -> nn.Module:
    """U-Net of half the width (Ronneberger et al., MICCAI 2015) with batch norm."""
    return UNet(widths, classes)


class DeepLab(nn.Module):
    """A backbone at an eighth of the size, pyramids of dilated convolutions, and back up."""

    def __init__(self, backbone: nn.Module, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        branches: list[nn.Module] = [ConvNorm(inputs, width)]
        branches += [ConvNorm(inputs, width, 3, dilation=rate) for rate in (12, 24, 36)]
        self.branches = nn.ModuleList(branches)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(inputs, width))
        self.join = ConvNorm(5 * width, width)
        self.head = nn.Sequential(ConvNorm(width, width, 3), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x)
        mean = functional.interpolate(self.mean(y), size=y.shape[-2:], mode="bilinear")
        y = self.join(torch.cat([*(branch(y) for branch in self.branches), mean], 1))
        return functional.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")


def deeplab_v3(
    widths: Sequence[int] = (64, 128, 256), blocks: Sequence[int] = (2, 2, 2), width: int = 256
) -> nn.Module:
    """DeepLabV3 (Chen et al., 2017) over three stages of a ResNet, 21 classes."""
    stages, features = residual_stages(widths[0], widths, blocks)
    stem = [ConvNorm(3, widths[0], 7, 2)]
    return DeepLab(nn.Sequential(*stem, *stages), features, width, 21)


class DbNet(nn.Module):
    """Regions of text: a ResNet, a pyramid joined at a quarter of the size, and two heads.

    Differentiable binarization (Liao et al., AAAI 2020): returns (batch, 3, height, width) of
    probability, threshold, and their binary map.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], inner: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1))
        stages, inputs = [], widths[0]
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = 2 if index else 1
            layers, inputs = residual_stages(inputs, (width,), (count,), first=first)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.inner = nn.ModuleList(nn.Conv2d(width, inner, 1, bias=False) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Conv2d(inner, inner // 4, 3, padding=1, bias=False) for _ in widths
        )
        self.heads = nn.ModuleList(self._head(inner) for _ in range(2))

    @staticmethod
    def _head(inner: int) -> nn.Module:
        hidden = inner // 4
        return nn.Sequential(
            ConvNorm(inner, hidden, 3),
            nn.ConvTranspose2d(hidden, hidden, 2, 2),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.ConvTranspose2d(hidden, 1, 2, 2),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        features, y = [], self.stem(x)
        for stage in self.stages:
            y = stage(y)
            features.append(y)
        levels = [inner(feature) for inner, feature in zip(self.inner, features, strict=True)]
        for index in range(len(levels) - 1, 0, -1):
            levels[index - 1] = levels[index - 1] + _enlarged(levels[index], 2)
        joined = torch.cat(
            [
                _enlarged(smooth(level), 2**index)
                for index, (smooth, level) in enumerate(zip(self.smooth, levels, strict=True))
            ][::-1],
            1,
        )
        probability, threshold = (head(joined) for head in self.heads)
        binary = torch.reciprocal(1 + torch.exp(-50 * (probability - threshold)))
        return torch.cat([probability, threshold, binary], 1)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return x
    return functional.interpolate(x, scale_factor=float(factor), mode="nearest")


def dbnet(
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    inner: int = 256,
) -> nn.Module:
    """DBNet over ResNet-18."""
    return DbNet(widths, blocks, inner)


class HighResolution(nn.Module):
    """HRNet (Sun et al., CVPR 2019): branches of all sizes, exchanged after every module."""

    def __init__(
        self, width: int, modules: Sequence[int], blocks: int, stem: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, stem, 3, 2), ConvNorm(stem, stem, 3, 2))
        widths = [width << index for index in range(len(modules) + 1)]
        self.enter = ConvNorm(stem, widths[0], 3)
        self.open = nn.ModuleList(ConvNorm(narrow, wide, 3, 2) for narrow, wide in pairwise(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(_Exchange(widths[: index + 2], blocks) for _ in range(count))
            for index, count in enumerate(modules)
        )
        self.head = nn.Sequential(
            ConvNorm(sum(widths), sum(widths)), nn.Conv2d(sum(widths), classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.enter(self.stem(x))]
        for opened, stage in zip(self.open, self.stages, strict=True):
            branches.append(opened(branches[-1]))
            assert isinstance(stage, nn.ModuleList)
            for module in stage:
                branches = module(branches)
        size = branches[0].shape[-2:]
        parts = [branches[0]]
        parts += [functional.interpolate(y, size=size, mode="bilinear") for y in branches[1:]]
        y: Tensor = self.head(torch.cat(parts, 1))
        return y


class _Exchange(nn.Module):
    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Sequential(
                        Added(
                            nn.Sequential(
                                ConvNorm(width, width, 3), ConvNorm(width, width, 3, act=None)
                            )
                        ),
                        nn.ReLU(),
                    )
                    for _ in range(blocks)
                )
            )
            for width in widths
        )
        self.ways = nn.ModuleList(
            nn.ModuleList(self._way(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    @staticmethod
    def _way(widths: Sequence[int], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            up = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest")
            return nn.Sequential(ConvNorm(widths[source], widths[target], act=None), up)
        layers: list[nn.Module] = []
        for step in range(source, target):
            last = step == target - 1
            outputs = widths[target] if last else widths[source]
            layers.append(ConvNorm(widths[source], outputs, 3, 2, act=None if last else nn.ReLU))
        return nn.Sequential(*layers)

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        found = [branch(x) for branch, x in zip(self.branches, given, strict=True)]
        made = []
        for ways in self.ways:
            total = ways[0](found[0])  # type: ignore[index]
            for way, x in zip(ways[1:], found[1:], strict=True):  # type: ignore[index]
                total = total + way(x)
            made.append(torch.relu(total))
        return made


def hrnet(
    width: int = 18, modules: Sequence[int] = (1, 1, 1), blocks: int = 2, classes: int = 19
) -> nn.Module:
    """HRNet-W18-Small with a head for segments."""
    return HighResolution(width, modules, blocks, 64 if width > 8 else 16, classes)


def super_resolution(features: int = 64, blocks: int = 8, factor: int = 2) -> nn.Module:
    """EDSR (Lim et al., CVPRW 2017) of half its depth: residual blocks, then pixels of channels."""
    body: list[nn.Module] = [
        Added(
            nn.Sequential(
                nn.Conv2d(features, features, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(features, features, 3, padding=1),
            )
        )
        for _ in range(blocks)
    ]
    body.append(nn.Conv2d(features, features, 3, padding=1))
    return nn.Sequential(
        nn.Conv2d(3, features, 3, padding=1),
        Added(nn.Sequential(*body)),
        nn.Conv2d(features, features * factor * factor, 3, padding=1),
        nn.PixelShuffle(factor),
        nn.Conv2d(features, 3, 3, padding=1),
    )


def _styled(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(inputs, outputs, kernel, stride),
        nn.InstanceNorm2d(outputs, affine=True),
    ]


def style_transfer(width: int = 32, blocks: int = 5) -> nn.Module:
    """Fast neural style (Johnson et al., ECCV 2016): reflected borders, instance norm, resizing."""
    layers: list[nn.Module] = [*_styled(3, width, 9), nn.ReLU()]
    layers += [*_styled(width, 2 * width, 3, 2), nn.ReLU()]
    layers += [*_styled(2 * width, 4 * width, 3, 2), nn.ReLU()]
    for _ in range(blocks):
        body = [*_styled(4 * width, 4 * width, 3), nn.ReLU(), *_styled(4 * width, 4 * width, 3)]
        layers.append(Added(nn.Sequential(*body)))
    for inputs, outputs in ((4 * width, 2 * width), (2 * width, width)):
        layers += [nn.Upsample(scale_factor=2.0), *_styled(inputs, outputs, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9))


class Flow(nn.Module):
    """Movement between two images, in the shape of RAFT (Teed and Deng, ECCV 2020).

    Correlations of all pairs of pixels at several sizes, looked up by sampling around the flow
    so far, and a recurrent update. Takes (batch, 6, height, width) of two images, and returns
    (batch, 2, height / 8, width / 8).
    """

    def __init__(self, width: int, hidden: int, steps: int, radius: int, levels: int) -> None:
        super().__init__()
        self.steps, self.radius, self.levels = steps, radius, levels
        self.features = self._encoder(width, 2 * width)
        self.context = self._encoder(width, 2 * hidden)
        self.hidden = hidden
        looked = levels * (2 * radius + 1) ** 2
        self.motion = nn.Sequential(ConvNorm(looked + 2, hidden), ConvNorm(hidden, hidden, 3))
        self.gates = nn.Conv2d(3 * hidden, 2 * hidden, 3, padding=1)
        self.candidate = nn.Conv2d(3 * hidden, hidden, 3, padding=1)
        self.flow = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 2, 3, padding=1)
        )

    @staticmethod
    def _encoder(width: int, outputs: int) -> nn.Module:
        stages, features = residual_stages(width, (width, 2 * width, 3 * width), (1, 1, 1))
        return nn.Sequential(ConvNorm(3, width, 7, 2), *stages, nn.Conv2d(features, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        first, second = images.chunk(2, 1)
        one, two = self.features(first), self.features(second)
        batch, channels, height, width = one.shape
        pairs = one.flatten(2).transpose(1, 2) @ two.flatten(2) / channels**0.5
        pyramid = [pairs.view(batch * height * width, 1, height, width)]
        for _ in range(self.levels - 1):
            pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
        rows, columns = torch.meshgrid(
            torch.arange(height, dtype=torch.float32),
            torch.arange(width, dtype=torch.float32),
            indexing="ij",
        )
        place = torch.stack((columns, rows)).unsqueeze(0)
        state, inputs = self.context(first).split(self.hidden, 1)
        state, inputs = torch.tanh(state), torch.relu(inputs)
        flow = torch.zeros_like(place)
        for _ in range(self.steps):
            looked = self._look(pyramid, place + flow)
            motion = self.motion(torch.cat([looked, flow], 1))
            update, reset = torch.sigmoid(self.gates(torch.cat([state, inputs, motion], 1))).chunk(
                2, 1
            )
            new = torch.tanh(self.candidate(torch.cat([reset * state, inputs, motion], 1)))
            state = (1 - update) * state + update * new
            flow = flow + self.flow(state)
        return flow

    def _look(self, pyramid: Sequence[Tensor], at: Tensor) -> Tensor:
        batch, _, height, width = at.shape
        around = torch.arange(-self.radius, self.radius + 1, dtype=torch.float32)
        dy, dx = torch.meshgrid(around, around, indexing="ij")
        window = torch.stack((dx, dy), -1).view(1, 2 * self.radius + 1, 2 * self.radius + 1, 2)
        centre = at.permute(0, 2, 3, 1).reshape(batch * height * width, 1, 1, 2)
        found = []
        for level, pairs in enumerate(pyramid):
            tall, wide = pairs.shape[-2:]
            extent = torch.tensor([wide - 1.0, tall - 1.0])
            grid = 2 * (centre / 2**level + window) / extent - 1
            sampled = functional.grid_sample(pairs, grid, align_corners=True)
            found.append(sampled.view(batch, height, width, -1))
        return torch.cat(found, -1).permute(0, 3, 1, 2)


def raft(
    width: int = 32, hidden: int = 96, steps: int = 4, radius: int = 3, levels: int = 3
) -> nn.Module:
    """Small RAFT with four updates."""
    return Flow(width, hidden, steps, radius, levels)


def pose(
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    hidden: int = 256,
    joints: int = 17,
) -> nn.Module:
    """Simple baseline for poses (Xiao et al., ECCV 2018): ResNet-18, deconvolutions of 4x4."""
    stages, inputs = residual_stages(widths[0], widths, blocks)
    layers = [ConvNorm(3, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1), *stages]
    for _ in range(3):
        layers += [
            nn.ConvTranspose2d(inputs, hidden, 4, 2, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
        ]
        inputs = hidden
    return nn.Sequential(*layers, nn.Conv2d(hidden, joints, 1))
