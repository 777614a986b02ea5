"""The networks that `accuracy_digits` trains, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.accuracy import RESULTS
from benchmarks.training import digits_net, digits_vit, shifted


@dataclass(frozen=True)
class Network:
    """A network with what is compared on it.

    about: which layers are pruned, and what else is to be known, for the page.
    patterns, densities: N:M patterns, and the shares of 1x16 blocks that are kept.
    titles: of the recipes.
    epochs: by default.
    training: arguments of `train`, the same for every method.
    output: where the results go by default.
    """

    name: str
    make: Callable[[], nn.Module]
    about: str
    patterns: tuple[str, ...]
    densities: tuple[float, ...]
    titles: tuple[str, ...]
    epochs: int
    output: Path
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)


CNN = Network(
    "cnn",
    digits_net,
    "A residual CNN: three convolutions are pruned; the stem and the classifier are not.",
    ("2:4", "1:4", "1:8", "1:16"),
    (0.5, 0.25, 0.125),
    (
        *("dense", "unstructured, one-shot", "ASP, one-shot", "SR-STE", "LBC"),
        *("SpRe over SR-STE", "SpRe over LBC", "1xN, one-shot", "SUBP"),
    ),
    16,
    RESULTS,
)
VIT = Network(
    "vit",
    digits_vit,
    "A vision transformer of three layers of width 64, trained with AdamW on images that are moved "
    "by up to two pixels: all its matrix products are pruned, those of attention too; the "
    "embedding of patches and the classifier are not.",
    ("2:4", "1:4"),
    (),
    ("dense", "ASP, one-shot", "SR-STE", "LBC"),
    200,
    RESULTS.with_name("accuracy_vit.json"),
    {"optimizer": "adamw", "rate": 1e-3, "augment": shifted},
)
NETWORKS = {network.name: network for network in (CNN, VIT)}
