"""What quantising a model has cost, layer by layer and at its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nmcompile.quantization.measure import Loss


@dataclass(frozen=True)
class LayerLoss:
    """One convolution or matrix product.

    pattern, density: of the integers, or of the weights of a layer left in float32.
    rounded: weights that were not zero and are rounded to it.
    weight_db: signal to quantisation noise of the weights in dB; None in float32.
    output_db: of the layer's output in the quantised model, with what layers before it have lost;
        None where the output is no tensor of both models.
    alone_db: of the model's first output where this layer alone is quantised; None where layers
        were not ranked.
    """

    name: str
    op: str
    precision: Literal["int8", "float32"]
    pattern: str
    density: float
    rounded: int = 0
    weight_db: float | None = None
    output_db: float | None = None
    alone_db: float | None = None


@dataclass(frozen=True)
class QuantizationReport:
    """A quantised model beside the float one.

    calibrated, measured: samples that the ranges are from, and that losses were measured on.
    held_out: whether these are others.
    loss: of the first output.
    layers: in order.
    """

    title: str
    statistics: str
    calibrated: int
    measured: int
    held_out: bool
    loss: Loss
    layers: tuple[LayerLoss, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the layers in float32."""
        return tuple(layer.name for layer in self.layers if layer.precision == "float32")

    @property
    def worst(self) -> tuple[str, ...]:
        """Names of the layers that hurt most, the worst first.

        By what each alone costs the output where that was measured, else by the noise behind it.
        """
        known = [layer for layer in self.layers if layer.alone_db is not None]
        ranked: Mapping[str, float] = (
            {layer.name: layer.alone_db for layer in known if layer.alone_db is not None}
            if known
            else {n.name: n.output_db for n in self.layers if n.output_db is not None}
        )
        return tuple(sorted(ranked, key=lambda name: ranked[name]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "title": self.title,
            "statistics": self.statistics,
            "calibrated": self.calibrated,
            "measured": self.measured,
            "held_out": self.held_out,
            "loss": asdict(self.loss),
            "kept": list(self.kept),
            "worst": list(self.worst),
            "layers": [asdict(layer) for layer in self.layers],
        }
