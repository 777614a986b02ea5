"""Classifiers of images that are built otherwise than ResNets and MobileNets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.zoo.layers import Added, ConvNorm, Joined, SqueezeExcite, classifier


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet(
    blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000
) -> nn.Module:
    """DenseNet-121 (Huang et al., CVPR 2017), 2.8 GMAC at 224²."""
    channels = 2 * growth
    layers: list[nn.Module] = [ConvNorm(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for index, count in enumerate(blocks):
        for _ in range(count):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if index < len(blocks) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, *classifier(channels, classes))


class _Shuffled(nn.Module):
    """Half of the channels through a branch, all of them where it halves the image; shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = stride == 1
        taken = half if self.split else inputs
        self.body = nn.Sequential(
            ConvNorm(taken, half),
            ConvNorm(half, half, 3, stride, groups=half, act=None),
            ConvNorm(half, half),
        )
        if not self.split:
            self.side = nn.Sequential(
                ConvNorm(inputs, inputs, 3, 2, groups=inputs, act=None), ConvNorm(inputs, half)
            )

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = x.chunk(2, 1) if self.split else (self.side(x), x)
        joined = torch.cat([kept, self.body(taken)], 1)
        batch, channels, height, width = joined.shape
        pairs = joined.view(batch, 2, channels // 2, height, width)
        return pairs.transpose(1, 2).reshape(batch, channels, height, width)


def shufflenet_v2(
    stages: Sequence[tuple[int, int]] = ((116, 4), (232, 8), (464, 4)),
    last: int = 1024,
    classes: int = 1000,
) -> nn.Module:
    """ShuffleNetV2 1.0x (Ma et al., ECCV 2018), 0.15 GMAC at 224²; (channels, blocks) by stage."""
    layers: list[nn.Module] = [ConvNorm(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 24
    for outputs, count in stages:
        layers += [_Shuffled(inputs if i == 0 else outputs, outputs, 2 if i == 0 else 1)
                   for i in range(count)]  # fmt: skip
        inputs = outputs
    return nn.Sequential(*layers, ConvNorm(inputs, last), *classifier(last, classes))


class _Ghost(nn.Module):
    """Half of the outputs by a 1x1 convolution, the others of those by a depthwise one."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        half = outputs // 2
        self.primary = ConvNorm(inputs, half, act=act)
        self.cheap = ConvNorm(half, half, 3, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)


def _ghost_block(
    inputs: int, hidden: int, outputs: int, kernel: int, stride: int, excite: bool
) -> nn.Module:
    body: list[nn.Module] = [_Ghost(inputs, hidden)]
    if stride > 1:
        body.append(ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=None))
    if excite:
        body.append(SqueezeExcite(hidden, max(hidden // 4 // 4 * 4, 8)))
    body.append(_Ghost(hidden, outputs, None))
    if stride == 1 and inputs == outputs:
        return Added(nn.Sequential(*body))
    shortcut = nn.Sequential(
        ConvNorm(inputs, inputs, kernel, stride, groups=inputs, act=None),
        ConvNorm(inputs, outputs, act=None),
    )
    return Added(nn.Sequential(*body), shortcut)


GHOST = (
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2),
    (5, 120, 40, True, 1), (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1),
    (3, 184, 80, False, 1), (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2),
    (5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)  # fmt: skip


def ghostnet(
    plan: Sequence[tuple[int, int, int, bool, int]] = GHOST, last: int = 960, classes: int = 1000
) -> nn.Module:
    """GhostNet 1.0x (Han et al., CVPR 2020), 0.14 GMAC at 224².

    plan: kernel, hidden channels, outputs, squeeze-and-excite, stride by block.
    """
    layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2)]
    inputs = 16
    for kernel, hidden, outputs, excite, stride in plan:
        layers.append(_ghost_block(inputs, hidden, outputs, kernel, stride, excite))
        inputs = outputs
    layers += [ConvNorm(inputs, last), nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, 1280, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(1280, classes))


MOBILE = (
    (3, 16, 16, False, "re", 1), (3, 64, 24, False, "re", 2), (3, 72, 24, False, "re", 1),
    (5, 72, 40, True, "re", 2), (5, 120, 40, True, "re", 1), (5, 120, 40, True, "re", 1),
    (3, 240, 80, False, "hs", 2), (3, 200, 80, False, "hs", 1), (3, 184, 80, False, "hs", 1),
    (3, 184, 80, False, "hs", 1), (3, 480, 112, True, "hs", 1), (3, 672, 112, True, "hs", 1),
    (5, 672, 160, True, "hs", 2), (5, 960, 160, True, "hs", 1), (5, 960, 160, True, "hs", 1),
)  # fmt: skip


def mobilenet_v3(
    plan: Sequence[tuple[int, int, int, bool, str, int]] = MOBILE,
    last: int = 960,
    classes: int = 1000,
) -> nn.Module:
    """MobileNetV3-Large (Howard et al., ICCV 2019), 0.22 GMAC at 224².

    plan: kernel, hidden channels, outputs, squeeze-and-excite, activation, stride by block.
    """
    layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2, act=nn.Hardswish)]
    inputs = 16
    for kernel, hidden, outputs, excite, kind, stride in plan:
        act = nn.Hardswish if kind == "hs" else nn.ReLU
        body: list[nn.Module] = [ConvNorm(inputs, hidden, act=act)] if hidden != inputs else []
        body.append(ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if excite:
            body.append(SqueezeExcite(hidden, max(hidden // 4 // 8 * 8, 8)))
        body.append(ConvNorm(hidden, outputs, act=None))
        block = nn.Sequential(*body)
        layers.append(Added(block) if stride == 1 and inputs == outputs else block)
        inputs = outputs
    layers += [ConvNorm(inputs, last, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, 1280), nn.Hardswish(), nn.Linear(1280, classes))


def squeezenet(
    plan: Sequence[Sequence[tuple[int, int]]] = (
        ((16, 64), (16, 64)),
        ((32, 128), (32, 128)),
        ((48, 192), (48, 192), (64, 256), (64, 256)),
    ),
    classes: int = 1000,
) -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al., 2016), 0.35 GMAC at 224².

    plan: squeezed and expanded channels of the modules behind each pooling.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()]
    inputs = 64
    for stage in plan:
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for squeezed, expanded in stage:
            one = nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.ReLU())
            three = nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU())
            layers += [nn.Conv2d(inputs, squeezed, 1), nn.ReLU(), Joined(one, three)]
            inputs = 2 * expanded
    layers += [nn.Conv2d(inputs, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    ((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
     (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128)),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)  # fmt: skip


def googlenet(
    plan: Sequence[Sequence[tuple[int, int, int, int, int, int]]] = INCEPTION, classes: int = 1000
) -> nn.Module:
    """GoogLeNet with batch norm (Szegedy et al., CVPR 2015), 1.5 GMAC at 224².

    plan: outputs of 1x1, of what reduces for 3x3, 3x3, reduces for 5x5, 5x5 and behind the pooling.
    """
    layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True)]
    layers += [ConvNorm(64, 64), ConvNorm(64, 192, 3)]
    inputs = 192
    for stage in plan:
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        for one, small, three, tiny, five, pooled in stage:
            layers.append(
                Joined(
                    ConvNorm(inputs, one),
                    nn.Sequential(ConvNorm(inputs, small), ConvNorm(small, three, 3)),
                    nn.Sequential(ConvNorm(inputs, tiny), ConvNorm(tiny, five, 5)),
                    nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, pooled)),
                )
            )
            inputs = one + three + five + pooled
    return nn.Sequential(*layers, *classifier(inputs, classes))


def vgg(
    stages: Sequence[tuple[int, int]] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    pixels: int = 49,
    hidden: int = 4096,
    classes: int = 1000,
) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman, ICLR 2015), 15.5 GMAC at 224².

    stages: channels and layers of each; pixels: of what the last one makes.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in stages:
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(inputs * pixels, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))
