"""What a user may decide about quantising a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nmcompile.errors import InputError
from nmcompile.images import Normalisation

STATISTICS = ("minmax", "entropy", "percentile")

SAMPLES = 256
"""Samples of the calibration data that are taken where nobody says how many."""


@dataclass(frozen=True)
class MaxLoss:
    """The most that the model's outputs may lose.

    percent: of the samples whose top class may become another; None where that does not count.
    decibels: signal-to-noise ratio that the first output keeps at least; None likewise.
    """

    percent: float | None = None
    decibels: float | None = None

    @classmethod
    def parse(cls, text: str) -> MaxLoss:
        """Read `0.5%` or `30dB`.

        Raises:
            InputError: it is neither.
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|dB)\s*", text)
        number = float(found[1]) if found else -1.0
        if found is None or (found[2] == "%" and number > 100):
            raise InputError(
                f"the largest loss is {text!r}: expected a share of samples whose top class may "
                "change, such as 0.5%, or the signal-to-noise ratio to keep, such as 30dB"
            )
        return cls(percent=number) if found[2] == "%" else cls(decibels=number)

    def __str__(self) -> str:
        if self.percent is not None:
            return f"at most {self.percent:g}% of the samples with another top class"
        return f"an output of at least {self.decibels:g} dB"


@dataclass(frozen=True)
class Quantization:
    """How `nmcompile.quantize` and `nmcompile.compile` quantise.

    Attributes:
        samples: the most calibration samples to take: spread evenly over files and arrays, the
            first of an iterable.
        statistics: how onnxruntime finds the range of an activation: by its extremes ("minmax"), as
            the range that loses least information ("entropy"), or that of nearly all values
            ("percentile").
        normalisation: of images; None for `nmcompile.images.usual_normalisation`.
        keep_float: names or wildcards (`stem*`) of layers to leave in float32.
        max_loss: leave more layers in float32, worst first, until the outputs lose no more; None
            for none.
        rank: whether to quantise every layer alone, to see which hurts most; `max_loss` does.

    Raises:
        InputError: the statistics are unknown.
    """

    samples: int = SAMPLES
    statistics: str = "minmax"
    normalisation: Normalisation | None = None
    keep_float: Sequence[str] = ()
    max_loss: MaxLoss | None = None
    rank: bool = False

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise InputError(
                f"statistics {self.statistics!r} are unknown; expected one of: "
                f"{', '.join(STATISTICS)}"
            )
