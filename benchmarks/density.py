"""What bench_density found: break-even densities, and tables, picture and caption of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from nmcompile.bench.break_even import break_even

FOLDER = Path(__file__).parent / "results"
DTYPES = ("float32", "int8")
PEERS = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-int8": "onnxruntime",
    "openvino-f32": "OpenVINO",
    "openvino-int8": "OpenVINO",
}
"""Engines whose time does not depend on the weights, and what to call them."""
COLOURS = ("#1f6feb", "#0a8f6c", "#8250df", "#c2410c")
STYLES = ("-", "--", "-", "-")  # the second often lies on the first


@dataclass(frozen=True)
class Layer:
    """One convolution of the model.

    count: how often the model has it.
    dense: the kernel that lowers it dense, which takes dense_ms.
    ms: by family, one for each density.
    peers: of other engines, dense.
    """

    shape: str
    count: int
    dense: str
    dense_ms: float
    ms: Mapping[str, Sequence[float]]
    peers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One measurement.

    share: of the model's prunable multiplications that the layers make up.
    densities: falling.
    families: the lines of the picture.
    dtype: of weights and activations.
    """

    machine: Mapping[str, Any]
    model: str
    share: float
    threads: int
    densities: Sequence[float]
    families: Sequence[str]
    layers: Sequence[Layer]
    dtype: str = "float32"

    @property
    def dense_ms(self) -> float:
        """Time of all layers dense."""
        return sum(layer.count * layer.dense_ms for layer in self.layers)

    @property
    def peer(self) -> tuple[str, float] | None:
        """The engine that is fastest over all layers, dense, and its time; None without any."""
        names = set.intersection(*(set(layer.peers) for layer in self.layers))
        times = {
            name: sum(layer.count * layer.peers[name] for layer in self.layers) for name in names
        }
        return min(times.items(), key=lambda item: item[1], default=None)

    @property
    def peer_speed(self) -> float | None:
        """How many times faster than our dense kernels that engine is."""
        return None if self.peer is None else self.dense_ms / self.peer[1]

    def speed_ups(self, family: str) -> list[float]:
        """Time of all layers dense over their time sparse, for each density."""
        return [
            self.dense_ms / sum(layer.count * layer.ms[family][i] for layer in self.layers)
            for i in range(len(self.densities))
        ]

    def break_even(self, family: str) -> float | None:
        """The density under which the family is faster than dense; see the function."""
        return break_even(self.densities, self.speed_ups(family))

    def break_even_over_peer(self, family: str) -> float | None:
        """As `break_even`, over the fastest other engine; None without one, too."""
        if self.peer_speed is None:
            return None
        speed_ups = [ratio / self.peer_speed for ratio in self.speed_ups(family)]
        return break_even(self.densities, speed_ups)

    def said(self, mark: float | None) -> str:
        """A break-even in words."""
        if mark is None:
            return "never faster"
        return "never slower" if mark == max(self.densities) else f"{mark:.2f}"


def path_of(dtype: str) -> Path:
    """Where results of a precision are kept."""
    return FOLDER / ("density.json" if dtype == DTYPES[0] else f"density-{dtype}.json")


def write_result(result: Result, path: Path) -> None:
    """As JSON, the totals and break-evens with it for people."""
    document = asdict(result)
    document["totals"] = {
        family: {
            "break_even": result.break_even(family),
            "break_even_over_peer": result.break_even_over_peer(family),
            "speed_ups": result.speed_ups(family),
        }
        for family in result.families
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """What `write_result` wrote."""
    document = json.loads(path.read_text())
    del document["totals"]
    layers = [Layer(**layer) for layer in document.pop("layers")]
    return Result(**document, layers=layers)


def tables(result: Result) -> list[Table]:
    """For the terminal: speed-ups by density, and break-evens by layer."""
    title = f"{result.model}: speed-up over our dense kernels, {result.dtype}, {_threads(result)}"
    totals = Table(title=title)
    totals.add_column("density", justify="right")
    layers = Table(title="break-even by layer")
    for name in ("layer", "dense kernel"):
        layers.add_column(name)
    peers = list(result.layers[0].peers)
    for name in ("count", "dense ms", *peers):
        layers.add_column(name, justify="right")
    for family in result.families:
        totals.add_column(family, justify="right")
        layers.add_column(family, justify="right")
    lines = [result.speed_ups(family) for family in result.families]
    for density, *ratios in zip(result.densities, *lines, strict=True):
        totals.add_row(f"{density:.3g}", *(f"{ratio:.2f}x" for ratio in ratios))
    totals.add_section()
    marks = [result.break_even(family) for family in result.families]
    totals.add_row("break-even", *map(result.said, marks))
    if result.peer is not None:
        over = [result.said(result.break_even_over_peer(family)) for family in result.families]
        totals.add_row(f"over {_peer(result)}", *over)
    for layer in result.layers:
        own = [
            break_even(result.densities, [layer.dense_ms / ms for ms in layer.ms[family]])
            for family in result.families
        ]
        layers.add_row(
            *(layer.shape, layer.dense, str(layer.count), f"{layer.dense_ms:.3f}"),
            *(f"{layer.peers[name]:.3f}" for name in peers),
            *map(result.said, own),
        )
    return [totals, layers]


def caption(result: Result, title: str) -> str:
    """One line for docs/performance.md: what the picture shows, and the break-evens."""
    marks = [f"{name}: {result.said(result.break_even(name))}" for name in result.families]
    text = (
        f"{title}'s convolutions in {result.dtype} ({result.share:.0%} of the multiplications that "
        f"can be pruned), {_threads(result)}, all run sparse, over our dense kernels. Break-even "
        f"density: {'; '.join(marks)}."
    )
    if result.peer_speed is not None:
        over = [
            f"{name}: {result.said(result.break_even_over_peer(name))}" for name in result.families
        ]
        text += (
            f" Over dense {result.dtype} convolutions of {_peer(result)}, {result.peer_speed:.2f}x "
            f"as fast as ours: {'; '.join(over)}."
        )
    return f"{text} A compiled model runs each layer in the way expected to be faster."


def picture(result: Result, title: str, path: Path) -> None:
    """Speed-up over density, a line per family, break-evens marked; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    ground, ink = "#fafafa", "#24292f"
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained", facecolor=ground)
    axes.set_facecolor(ground)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ideal = [1 / density for density in result.densities]
    axes.plot(result.densities, ideal, color="#9aa5b1", linestyle=":", label="ideal: 1 / density")
    axes.axhline(1, color=ink, linewidth=1, linestyle="--")
    if result.peer_speed is not None:
        name = f"{_peer(result)}, dense"
        axes.axhline(result.peer_speed, color="#9a6700", linewidth=1, linestyle="-.", label=name)
    marks = []
    for family, colour, style in zip(result.families, COLOURS, STYLES, strict=False):
        mark, label = result.break_even(family), family
        if mark is not None and mark < max(result.densities):
            marks.append((mark, colour))
        else:
            label += f" ({result.said(mark)})"
        axes.plot(
            *(result.densities, result.speed_ups(family)),
            color=colour,
            linestyle=style,
            marker="o",
            markersize=3.5,
            label=label,
        )
    lowest = min(
        1.0,
        result.peer_speed or 1.0,
        *(min(result.speed_ups(family)) for family in result.families),
    )
    # Each value stands under its point, beneath all lines. Higher densities, further left, stand
    # lower, so that no text meets another's leader.
    levels = [lowest * 0.88 * 0.84**i for i in range(len(marks) + 1)]
    for (mark, colour), level in zip(sorted(marks), levels, strict=False):
        axes.plot([mark, mark], [level * 0.96, 1], color=colour, linewidth=1, linestyle=":")
        axes.plot(mark, 1, "o", color=colour, markersize=9, markeredgecolor=ground, zorder=3)
        axes.annotate(
            f"break-even {mark:.2f}",
            (mark, level),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            fontweight="bold",
            va="center",
        )
    axes.set_xlim(max(result.densities) * 1.12, min(result.densities) / 1.12)
    axes.set_ylim(levels[-1], max(ideal) * 1.12)
    ratios = [r for r in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if levels[-1] <= r <= max(ideal) * 1.1]
    axes.set_yticks(ratios, [f"{ratio:g}x" for ratio in ratios])
    axes.set_xticks(result.densities, [f"{density:.3g}" for density in result.densities])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("density: share of weights kept")
    axes.set_ylabel("speed-up over our dense kernels")
    axes.set_title(
        f"{title}, convolutions, {_threads(result)}, batch 1, {result.dtype}",
        loc="left",
        fontsize=10,
    )
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150, facecolor=ground)
    pyplot.close(figure)


def _peer(result: Result) -> str:
    assert result.peer is not None
    return PEERS.get(result.peer[0], result.peer[0])


def _threads(result: Result) -> str:
    return f"{result.threads} thread{'s' if result.threads > 1 else ''}"
