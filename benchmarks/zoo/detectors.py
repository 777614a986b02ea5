"""Detectors whose outputs depend on the image: SSD and Faster R-CNN, suppression included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import residual_stages
from benchmarks.zoo.layers import ConvNorm
from benchmarks.zoo.regions import nms, roi_align

LARGEST = math.log(1000 / 16)
"""Of the logarithm of a side over its anchor's."""


def decode(deltas: Tensor, boxes: Tensor, scales: Sequence[float]) -> Tensor:
    """Boxes (n, 4) as corners, moved by predictions; scales: of those of centres and sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sides / 2
    moved = deltas[:, :2] / scales[0] * sides + centres
    grown = torch.exp((deltas[:, 2:] / scales[1]).clamp(max=LARGEST)) * sides
    return torch.cat([moved - grown / 2, moved + grown / 2], 1)


def anchors_of(
    height: int, width: int, stride: int, sizes: Sequence[float], ratios: Sequence[float]
) -> Tensor:
    """Anchor boxes (height x width x sizes x ratios, 4) as corners."""
    sides = torch.tensor([[s * r**-0.5, s * r**0.5] for s in sizes for r in ratios])
    # Numbers, not what tracing follows: where the cells are is known.
    down, across = (torch.arange(int(n), dtype=torch.float32) * stride for n in (height, width))
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    centres = torch.stack((columns, rows), -1).view(-1, 1, 2) + stride / 2
    return torch.cat([centres - sides / 2, centres + sides / 2], -1).view(-1, 4)


def clipped(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes within an image of (height, width)."""
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


def suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best boxes of each label, at most `most` of them; those of others do not count."""
    apart = boxes + (labels.float() * (boxes.max() + 1))[:, None]
    kept = nms(apart, scores, overlap)[:most]
    return boxes[kept], scores[kept], labels[kept]


class Ssd(nn.Module):
    """SSD-Lite over MobileNetV2 (Sandler et al., CVPR 2018): boxes, scores and labels."""

    def __init__(self, width: int, classes: int, per_class: int, size: int) -> None:
        super().__init__()
        self.classes, self.per_class, self.size = classes, per_class, size
        self.stem = nn.Sequential(
            ConvNorm(3, width, 3, 2, act=nn.ReLU6),
            *(self._light(width << i, width << (i + 1), 2) for i in range(3)),
            *(self._light(8 * width, 8 * width, 1) for _ in range(3)),
        )
        self.extras = nn.ModuleList(
            [
                self._light(8 * width, 16 * width, 2),
                self._light(16 * width, 8 * width, 2),
                self._light(8 * width, 8 * width, 2),
            ]
        )
        widths = (8 * width, 16 * width, 8 * width, 8 * width)
        self.boxes = nn.ModuleList(self._predict(w, 6 * 4) for w in widths)
        self.scores = nn.ModuleList(self._predict(w, 6 * classes) for w in widths)

    @staticmethod
    def _light(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(inputs, inputs, 3, stride, groups=inputs, act=nn.ReLU6),
            ConvNorm(inputs, outputs, act=nn.ReLU6),
        )

    @staticmethod
    def _predict(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(inputs, inputs, 3, groups=inputs, act=nn.ReLU6), nn.Conv2d(inputs, outputs, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = [self.stem(x)]
        for extra in self.extras:
            features.append(extra(features[-1]))
        deltas, logits, anchors = [], [], []
        for level, y in enumerate(features):
            rows, columns = y.shape[-2:]
            deltas.append(self.boxes[level](y).permute(0, 2, 3, 1).reshape(-1, 4))
            logits.append(self.scores[level](y).permute(0, 2, 3, 1).reshape(-1, self.classes))
            side = self.size * (0.2 + 0.2 * level)
            anchors.append(
                anchors_of(
                    rows, columns, self.size // int(rows), (side, side * 1.2), (0.5, 1.0, 2.0)
                )
            )
        boxes = decode(torch.cat(deltas), torch.cat(anchors), (10.0, 5.0))
        boxes = clipped(boxes, (self.size, self.size))
        scores = torch.cat(logits).softmax(-1)
        found, likely, labels = [], [], []
        for label in range(1, self.classes):
            best = scores[:, label].topk(min(self.per_class, len(scores)))
            found.append(boxes[best.indices])
            likely.append(best.values)
            labels.append(torch.full_like(best.indices, label))
        return suppressed(torch.cat(found), torch.cat(likely), torch.cat(labels), 0.55, 100)


def ssd(width: int = 32, classes: int = 21, per_class: int = 50, size: int = 320) -> nn.Module:
    """SSD-Lite for the 20 classes of VOC and the background."""
    return Ssd(width, classes, per_class, size)


class FasterRcnn(nn.Module):
    """Faster R-CNN with a feature pyramid, as torchvision has it: boxes, scores and labels.

    Ren et al. (NeurIPS 2015), Lin et al. (CVPR 2017). Regions are aligned at the level that fits
    their size.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        bottleneck: bool,
        inner: int,
        hidden: int,
        classes: int,
        proposals: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.size, self.classes, self.proposals = size, classes, proposals
        self.stem = nn.Sequential(ConvNorm(3, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1))
        stages, inputs, outputs = [], widths[0], []
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = 2 if index else 1
            layers, inputs = residual_stages(inputs, (width,), (count,), bottleneck, first)
            stages.append(nn.Sequential(*layers))
            outputs.append(inputs)
        self.stages = nn.ModuleList(stages)
        self.inner = nn.ModuleList(nn.Conv2d(width, inner, 1) for width in outputs)
        self.layer = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in outputs)
        self.shared = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU())
        self.objects, self.deltas = nn.Conv2d(inner, 3, 1), nn.Conv2d(inner, 12, 1)
        self.box_head = nn.Sequential(
            nn.Flatten(), nn.Linear(inner * 49, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
            nn.ReLU(),
        )  # fmt: skip
        self.scores, self.boxes = nn.Linear(hidden, classes), nn.Linear(hidden, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, y = [], self.stem(x)
        for stage in self.stages:
            y = stage(y)
            features.append(y)
        levels = [inner(feature) for inner, feature in zip(self.inner, features, strict=True)]
        for index in range(len(levels) - 1, 0, -1):
            size = levels[index - 1].shape[-2:]
            levels[index - 1] = levels[index - 1] + functional.interpolate(levels[index], size=size)
        levels = [layer(level) for layer, level in zip(self.layer, levels, strict=True)]
        regions = self._propose([*levels, functional.max_pool2d(levels[-1], 1, 2)])
        hidden = self.box_head(self._align(levels, regions))
        return self._decide(self.scores(hidden), self.boxes(hidden), regions)

    def _propose(self, levels: Sequence[Tensor]) -> Tensor:
        boxes, scores, places = [], [], []
        for index, level in enumerate(levels):
            y = self.shared(level)
            stride, anchor = 4 << index, 32.0 * 2**index
            anchors = anchors_of(y.shape[2], y.shape[3], stride, (anchor,), (0.5, 1.0, 2.0))
            likely = self.objects(y).permute(0, 2, 3, 1).reshape(-1)
            deltas = self.deltas(y).permute(0, 2, 3, 1).reshape(-1, 4)
            best = likely.topk(min(self.proposals, len(likely))).indices
            boxes.append(decode(deltas[best], anchors[best], (1.0, 1.0)))
            scores.append(likely[best].sigmoid())
            places.append(torch.full_like(best, index))
        joined = clipped(torch.cat(boxes), self.size)
        large = torch.nonzero((joined[:, 2:] - joined[:, :2]).amin(1) >= 1e-3).squeeze(1)
        found, _, _ = suppressed(
            joined[large], torch.cat(scores)[large], torch.cat(places)[large], 0.7, self.proposals
        )
        return found

    def _align(self, levels: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Each region at one level; what was taken level by level goes back to its place."""
        sides = (regions[:, 2:] - regions[:, :2]).prod(1).sqrt()
        chosen = torch.floor(4 + torch.log2(sides / 224 + 1e-6)).clamp(2, 1 + len(levels)) - 2
        order, found = [], []
        for index, level in enumerate(levels):
            mine = torch.nonzero(chosen == index).squeeze(1)
            order.append(mine)
            found.append(roi_align(level, regions[mine], 1 / (4 << index), 7, 2))
        back = torch.argsort(torch.cat(order))
        return torch.cat(found)[back]

    def _decide(
        self, logits: Tensor, deltas: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        likely = logits.softmax(-1)[:, 1:]
        count = self.classes - 1
        each = regions.unsqueeze(1).expand(-1, self.classes, -1).reshape(-1, 4)
        boxes = clipped(decode(deltas.reshape(-1, 4), each, (10.0, 5.0)), self.size)
        boxes = boxes.view(-1, self.classes, 4)[:, 1:].reshape(-1, 4)
        labels = torch.arange(1, count + 1).expand_as(likely).reshape(-1)
        scores = likely.reshape(-1)
        kept = torch.nonzero(scores > 0.05).squeeze(1)
        return suppressed(boxes[kept], scores[kept], labels[kept], 0.5, 100)


def faster_rcnn(
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (3, 4, 6, 3),
    bottleneck: bool = True,
    inner: int = 256,
    hidden: int = 1024,
    classes: int = 21,
    proposals: int = 100,
    size: tuple[int, int] = (416, 416),
) -> nn.Module:
    """Faster R-CNN over ResNet-50 with a pyramid, 100 proposals."""
    return FasterRcnn(widths, blocks, bottleneck, inner, hidden, classes, proposals, size)
