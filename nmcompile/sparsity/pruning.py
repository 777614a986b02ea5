"""What may be done to a model's weights so that they hold a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pruning:
    """How `nmcompile.compile` and `nmcompile.enforce` make layers hold a pattern.

    Attributes:
        mode: "project" prunes layers that break the pattern by magnitude; "verify" never changes a
            weight and refuses the model.
        density: share of weights kept when 1xN or unstructured is projected; a layer that has the
            pattern, but keeps more than this, is projected too.
        layers: names or wildcards (`layer1.*`) of the only layers to look at; None for all eligible
            ones.
        exclude: names or wildcards of layers to leave alone.
        permute: whether channels are first put in an order that keeps more of the weights: input
            channels for N:M, output channels for 1xN. The function of the folded model stays the
            same; what projection drops of it does not.
        seed: of that search, whose result depends on nothing else while there is time.
        time_limit: seconds that it may take.
    """

    mode: Literal["project", "verify"] = "project"
    density: float | None = None
    layers: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    permute: bool = False
    seed: int = 0
    time_limit: float = 60.0


PROJECT = Pruning()
VERIFY = Pruning(mode="verify")
