"""Detectors in the shape of YOLOv8 and YOLO11, with their decoders and heads for segments.

Written after the published descriptions (docs.ultralytics.com); weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.layers import Added, ConvNorm

BINS = 16
"""Values of the distribution that a side of a box is the mean of."""


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Module:
    return ConvNorm(inputs, outputs, kernel, stride, groups=groups, act=nn.SiLU)


class _Split(nn.Module):
    """C2f and C3k2: two halves, blocks over the second one after another; all joined."""

    def __init__(self, inputs: int, outputs: int, blocks: Sequence[nn.Module], half: int) -> None:
        super().__init__()
        self.first = _conv(inputs, 2 * half)
        self.blocks = nn.ModuleList(blocks)
        self.last = _conv((2 + len(blocks)) * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        y: Tensor = self.last(torch.cat(parts, 1))
        return y


def _bottleneck(channels: int, hidden: int, shortcut: bool) -> nn.Module:
    body = nn.Sequential(_conv(channels, hidden, 3), _conv(hidden, channels, 3))
    return Added(body) if shortcut else body


def _c2f(inputs: int, outputs: int, count: int, shortcut: bool = False) -> nn.Module:
    half = outputs // 2
    return _Split(inputs, outputs, [_bottleneck(half, half, shortcut) for _ in range(count)], half)


class _C3k(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left, self.right = _conv(channels, half), _conv(channels, half)
        self.blocks = nn.Sequential(*(_bottleneck(half, half, True) for _ in range(2)))
        self.last = _conv(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.cat([self.blocks(self.left(x)), self.right(x)], 1))
        return y


def _c3k2(inputs: int, outputs: int, count: int, deep: bool, ratio: float = 0.5) -> nn.Module:
    half = int(outputs * ratio)
    blocks = [_C3k(half) if deep else _bottleneck(half, half // 2, True) for _ in range(count)]
    return _Split(inputs, outputs, blocks, half)


class _Pyramid(nn.Module):
    """SPPF: maxima over growing windows, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.last = _conv(channels, half), _conv(4 * half, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        y: Tensor = self.last(torch.cat(parts, 1))
        return y


class _Attention(nn.Module):
    """Attention over pixels with a depthwise convolution for their places."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, channels // heads
        self.key = self.size // 2
        kept = ConvNorm(channels, channels + 2 * self.key * heads, act=None)
        self.qkv, self.project = kept, ConvNorm(channels, channels, act=None)
        self.place = ConvNorm(channels, channels, 3, groups=channels, act=None)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.heads, 2 * self.key + self.size, height * width)
        q, k, v = torch.split(qkv, [self.key, self.key, self.size], 2)
        weights = ((q.transpose(-2, -1) @ k) * self.key**-0.5).softmax(-1)
        y = (v @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        places = self.place(v.reshape(batch, channels, height, width))
        result: Tensor = self.project(y + places)
        return result


class _C2psa(nn.Module):
    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        half = channels // 2
        self.first, self.last = _conv(channels, 2 * half), _conv(2 * half, channels)
        self.blocks = nn.Sequential(*(self._block(half) for _ in range(count)))

    @staticmethod
    def _block(channels: int) -> nn.Module:
        wide = nn.Sequential(
            _conv(channels, 2 * channels), ConvNorm(2 * channels, channels, act=None)
        )
        return nn.Sequential(Added(_Attention(channels, max(channels // 64, 1))), Added(wide))

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = self.first(x).chunk(2, 1)
        y: Tensor = self.last(torch.cat([kept, self.blocks(taken)], 1))
        return y


class _Head(nn.Module):
    """Boxes as distributions of their sides and scores, decoded: (batch, 4 + classes, places)."""

    def __init__(self, channels: Sequence[int], classes: int, light: bool) -> None:
        super().__init__()
        boxes = max(16, channels[0] // 4, 4 * BINS)
        scores = max(channels[0], min(classes, 100))
        self.boxes = nn.ModuleList(
            nn.Sequential(_conv(c, boxes, 3), _conv(boxes, boxes, 3), nn.Conv2d(boxes, 4 * BINS, 1))
            for c in channels
        )
        self.scores = nn.ModuleList(
            nn.Sequential(*self._towers(c, scores, light), nn.Conv2d(scores, classes, 1))
            for c in channels
        )
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))

    @staticmethod
    def _towers(inputs: int, hidden: int, light: bool) -> list[nn.Module]:
        if not light:
            return [_conv(inputs, hidden, 3), _conv(hidden, hidden, 3)]
        layers: list[nn.Module] = []
        for channels in (inputs, hidden):
            layers += [_conv(channels, channels, 3, groups=channels), _conv(channels, hidden)]
        return layers

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        found, places, strides = [], [], []
        for level, x in enumerate(features):
            batch, _, height, width = x.shape
            both = torch.cat([self.boxes[level](x), self.scores[level](x)], 1)
            found.append(both.view(batch, -1, height * width))
            # Numbers, not what tracing follows: where the cells are is known.
            rows, columns = (
                torch.arange(int(n), dtype=torch.float32) + 0.5 for n in (height, width)
            )
            y, x_ = torch.meshgrid(rows, columns, indexing="ij")
            places.append(torch.stack((x_, y), -1).view(-1, 2).T)
            strides.append(torch.full((1, height * width), 8.0 * 2**level))
        joined, place, stride = torch.cat(found, 2), torch.cat(places, 1), torch.cat(strides, 1)
        sides, scores = joined.split((4 * BINS, joined.shape[1] - 4 * BINS), 1)  # type: ignore[no-untyped-call]
        spread = sides.view(sides.shape[0], 4, BINS, -1).transpose(1, 2).softmax(1)
        distance = functional.conv2d(spread, self.bins)[:, 0]  # type: ignore[arg-type]
        before, behind = distance.chunk(2, 1)
        low, high = place - before, place + behind
        boxes = torch.cat(((low + high) / 2, high - low), 1) * stride
        return torch.cat((boxes, scores.sigmoid()), 1)


class Yolo(nn.Module):
    """A YOLO with a path up and a path down; widths and counts of the "n" sizes by default.

    Returns boxes and scores; with `masks`, also coefficients of prototypes, and these.
    """

    def __init__(self, version: int, width: int, count: int, classes: int, masks: int) -> None:
        super().__init__()
        w1, w2, w4, w8, w16 = (width * factor for factor in (1, 2, 4, 8, 16))
        new = version == 11

        def stage(inputs: int, outputs: int, n: int, deep: bool, shortcut: bool) -> nn.Module:
            if new:
                ratio = 0.5 if deep or not shortcut else 0.25
                return _c3k2(inputs, outputs, count, deep, ratio)
            return _c2f(inputs, outputs, n * count, shortcut)

        early = (w4, w8) if new else (w2, w4)  # YOLO11 widens before it halves
        self.stem = nn.Sequential(_conv(3, w1, 3, 2), _conv(w1, w2, 3, 2))
        self.stage2 = stage(w2, early[0], 1, False, True)
        self.down3, self.stage3 = (
            _conv(early[0], w4, 3, 2),
            stage(w4, early[1], 2, False, True),
        )
        self.down4, self.stage4 = _conv(early[1], w8, 3, 2), stage(w8, w8, 2, True, True)
        tail: list[nn.Module] = [stage(w16, w16, 1, True, True), _Pyramid(w16)]
        self.down5 = _conv(w8, w16, 3, 2)
        self.stage5 = nn.Sequential(*tail, *([_C2psa(w16, count)] if new else []))
        self.up4 = stage(w16 + w8, w8, 1, False, False)
        self.up3 = stage(w8 + early[1], w4, 1, False, False)
        self.narrow4, self.pan4 = _conv(w4, w4, 3, 2), stage(w4 + w8, w8, 1, False, False)
        self.narrow5, self.pan5 = _conv(w8, w8, 3, 2), stage(w8 + w16, w16, 1, True, False)
        widths = (w4, w8, w16)
        self.head = _Head(widths, classes, light=new)
        self.masks = masks
        if masks:
            hidden = max(w4 // 4, masks)
            self.coefficients = nn.ModuleList(
                nn.Sequential(
                    _conv(c, hidden, 3), _conv(hidden, hidden, 3), nn.Conv2d(hidden, masks, 1)
                )
                for c in widths
            )
            self.prototypes = nn.Sequential(
                _conv(w4, w4, 3),
                nn.ConvTranspose2d(w4, w4, 2, 2),
                _conv(w4, w4, 3),
                _conv(w4, masks),
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x3 = self.stage3(self.down3(self.stage2(self.stem(x))))
        x4 = self.stage4(self.down4(x3))
        x5 = self.stage5(self.down5(x4))
        y4 = self.up4(torch.cat([_double(x5), x4], 1))
        y3 = self.up3(torch.cat([_double(y4), x3], 1))
        z4 = self.pan4(torch.cat([self.narrow4(y3), y4], 1))
        z5 = self.pan5(torch.cat([self.narrow5(z4), x5], 1))
        features = (y3, z4, z5)
        found: Tensor = self.head(features)
        if not self.masks:
            return found
        shares = [
            part(feature).flatten(2)
            for part, feature in zip(self.coefficients, features, strict=True)
        ]
        return torch.cat([found, torch.cat(shares, 2)], 1), self.prototypes(y3)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def yolov8(width: int = 16, count: int = 1, classes: int = 80, masks: int = 0) -> nn.Module:
    """YOLOv8n, 4.4 GMAC at 640²; `masks` prototypes for segments (32 in the -seg model)."""
    return Yolo(8, width, count, classes, masks)


def yolo11(width: int = 16, count: int = 1, classes: int = 80, masks: int = 0) -> nn.Module:
    """YOLO11n, 3.3 GMAC at 640²; `masks` as above."""
    return Yolo(11, width, count, classes, masks)
