"""Models along time: text in images, sound, and videos."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.zoo.layers import Added, ConvNorm, classifier


class Crnn(nn.Module):
    """Convolutions down to one row, recurrent layers over its columns, a class for each.

    Shi et al. (TPAMI 2017): (batch, 1, 32, width) to (width / 4 + 1, batch, classes).
    """

    def __init__(self, widths: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        w1, w2, w3, w4 = widths
        self.features = nn.Sequential(
            nn.Conv2d(1, w1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w1, w2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            ConvNorm(w2, w3, 3), nn.Conv2d(w3, w3, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            ConvNorm(w3, w4, 3), nn.Conv2d(w4, w4, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(w4, w4, 2), nn.BatchNorm2d(w4), nn.ReLU(),
        )  # fmt: skip
        self.recurrent = nn.LSTM(w4, hidden, num_layers=2, bidirectional=True)
        self.classes = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).squeeze(2).permute(2, 0, 1)
        states, _ = self.recurrent(columns)
        logits: Tensor = self.classes(states)
        return logits


def crnn(
    widths: Sequence[int] = (64, 128, 256, 512), hidden: int = 256, classes: int = 6625
) -> nn.Module:
    """CRNN for the characters of PP-OCR's dictionary."""
    return Crnn(widths, hidden, classes)


def keyword_spotter(width: int = 64, blocks: int = 4, classes: int = 12) -> nn.Module:
    """DS-CNN (Zhang et al., 2017) over a spectrogram (batch, 1, 49, 10)."""
    layers: list[nn.Module] = [ConvNorm(1, width, (9, 3), 2)]
    for _ in range(blocks):
        layers += [ConvNorm(width, width, 3, groups=width), ConvNorm(width, width)]
    return nn.Sequential(*layers, *classifier(width, classes))


class _Dilated(nn.Module):
    """Two dilated convolutions along time with their past in front, and a way around them."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        past = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.body = nn.Sequential(
            past, nn.Conv1d(inputs, outputs, 3, dilation=dilation), nn.ReLU(),
            past, nn.Conv1d(outputs, outputs, 3, dilation=dilation), nn.ReLU(),
        )  # fmt: skip
        self.side = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.body(x) + self.side(x)).relu()
        return y


def temporal(inputs: int = 80, width: int = 128, blocks: int = 6, classes: int = 30) -> nn.Module:
    """Temporal convolutional network (Bai et al., 2018): (batch, inputs, time)."""
    layers = [
        _Dilated(inputs if index == 0 else width, width, 1 << index) for index in range(blocks)
    ]
    return nn.Sequential(*layers, nn.Conv1d(width, classes, 1))


def _conv3d(inputs: int, outputs: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm3d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def video(widths: Sequence[int] = (32, 64, 128), classes: int = 400) -> nn.Module:
    """R3D (Tran et al., CVPR 2018) of one block a stage and half the width: (batch, 3, t, h, w)."""
    layers: list[nn.Module] = [
        nn.Conv3d(3, widths[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(widths[0]),
        nn.ReLU(),
    ]
    inputs = widths[0]
    for index, width in enumerate(widths):
        stride = 2 if index else 1
        body = nn.Sequential(_conv3d(inputs, width, stride), _conv3d(width, width, act=False))
        side = None
        if stride > 1 or inputs != width:
            side = nn.Sequential(
                nn.Conv3d(inputs, width, 1, stride, bias=False), nn.BatchNorm3d(width)
            )
        layers += [Added(body, side), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(inputs, classes))
