"""What quantising a model has cost, layer by layer and at its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nmcompile.quantization.measure import Loss
from nmcompile.tables import printable, spell_facts, spell_table
from nmcompile.wording import way

WORST = 5  # layers named below the table


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

    `print` shows what the command line does.
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

    def __str__(self) -> str:
        """The layers and what the outputs lost."""
        ranked = any(layer.alone_db is not None for layer in self.layers)
        columns = ["layer", "in", "pattern", "density", "rounded to 0", "weights dB", "output dB"]
        columns += ["alone dB"] if ranked else []
        rows = [_cells(layer, ranked) for layer in self.layers]
        lines = [
            spell_table(
                "signal to quantisation noise", columns, rows, range(3, len(columns)), spare=(4, 5)
            ),
            "",
        ]
        worst = ", ".join(self.worst[:WORST])
        if worst:
            rank = way("--rank", "Quantization(rank=True)")
            how = "alone" if ranked else f"with all before them; {rank} measures each alone"
            lines.append(f"these hurt most ({how}): {printable(worst)}")
        loss, facts = self.loss, dict[str, str]()
        facts["samples"] = f"{self.calibrated} calibrated with ({self.statistics}), " + (
            f"{self.measured} others measured on"
            if self.held_out
            else "and measured on, since there are few"
        )
        facts["layers"] = f"{len(self.layers)}, {len(self.kept)} of them left in float32"
        if self.kept:
            facts["float32"] = ", ".join(self.kept)
        facts["output"] = f"{loss.decibels:.1f} dB"
        if loss.same_top1 is not None:
            facts["top class"] = f"{loss.same_top1:.2%} as in float32"
        if loss.top1 is not None and loss.top1_float is not None:
            facts["accuracy"] = f"{loss.top1:.2%}, in float32 {loss.top1_float:.2%}"
        return "\n".join([*lines, spell_facts(facts)])

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


def _cells(layer: LayerLoss, ranked: bool) -> list[str]:
    def decibels(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    rounded = str(layer.rounded) if layer.precision == "int8" else ""
    cells = [layer.name, layer.precision, layer.pattern, f"{layer.density:.3f}", rounded]
    cells += [decibels(layer.weight_db), decibels(layer.output_db)]
    return [*cells, decibels(layer.alone_db)] if ranked else cells
