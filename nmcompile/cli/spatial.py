"""Densities per kernel position: the table and the picture of `nmc inspect --spatial`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nmcompile.cli.figures import GROUND, INK, load_pyplot, save_figure
from nmcompile.cli.output import print_json, print_table
from nmcompile.cli.printing import say

if TYPE_CHECKING:
    from nmcompile.spatial import Array, SpatialLayer

DRAWN = 8  # layers in the picture
TITLES = {
    "main": "weight",
    "unstructured": "unstructured pruning\nto the same density",
    "folded": "after folding",
}


def show_spatial(layers: Sequence[SpatialLayer], plot: Path | None, as_json: bool) -> None:
    """Print the report, and draw it if asked to.

    Raises:
        InputError: matplotlib is missing.
        ArtifactError: the picture cannot be written.
    """
    if plot is not None:
        plot_spatial(layers, plot)
    if as_json:
        print_json({"kind": "spatial", "layers": [layer.to_dict() for layer in layers]})
        return
    columns = ["layer", "density", *(title.replace("\n", " ") for title in TITLES.values())]
    rows = [
        [layer.name, f"{layer.density:.3f}", *(_spell(getattr(layer, name)) for name in TITLES)]
        for layer in layers
    ]
    print_table("density per kernel position", columns, rows, right=(1,))
    if not layers:
        say("no convolution is larger than 1x1")
    if plot is not None:
        say(f"drawn in {plot}")


def plot_spatial(layers: Sequence[SpatialLayer], path: Path) -> None:
    """Draw the layers whose positions unstructured pruning would treat most differently.

    Raises:
        InputError: matplotlib is missing.
        ArtifactError: the picture cannot be written.
    """
    pyplot = load_pyplot()
    ranked = sorted(layers, key=lambda layer: -_spread(layer))[:DRAWN]
    shown = sorted(ranked, key=layers.index)
    figure, axes = pyplot.subplots(
        max(len(shown), 1),
        len(TITLES),
        figsize=(7, 0.8 + 1.5 * max(len(shown), 1)),
        squeeze=False,
        layout="constrained",
        facecolor=GROUND,
    )
    arrays = [getattr(layer, name) for layer in shown for name in TITLES]
    highest = max((float(array.max()) for array in arrays if array is not None), default=1.0)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], TITLES.values(), strict=True):
        axis.set_title(title, fontsize=9, color=INK)
    for line, layer in zip(axes, shown, strict=False):
        line[0].text(
            -0.05, 0.5, layer.name, transform=line[0].transAxes, ha="right", va="center", fontsize=8
        )
        for axis, name in zip(line, TITLES, strict=True):
            array = getattr(layer, name)
            if array is None:
                axis.text(0.5, 0.5, "not stored", transform=axis.transAxes, ha="center", fontsize=8)
                continue
            axis.imshow(array, vmin=0, vmax=highest, cmap="Blues")
            for (row, column), share in np.ndenumerate(array):
                colour = "white" if share > 0.6 * highest else INK
                axis.text(
                    column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour
                )
    save_figure(figure, path)


def _spread(layer: SpatialLayer) -> float:
    array = layer.main if layer.unstructured is None else layer.unstructured
    return float(array.max() - array.min())


def _spell(array: Array | None) -> str:
    if array is None:
        return "not stored"
    return "\n".join(" ".join(f"{share:.2f}" for share in line) for line in array)
