"""Verify that layers have a pattern, or project them onto it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nmcompile.errors import PatternError
from nmcompile.passes.graph import Array, Graph, Layer, Note, PassResult
from nmcompile.sparsity import (
    LayerFacts,
    OneByN,
    Pattern,
    check,
    detect,
    energy_kept,
    left_out,
    parse_pattern,
    project,
    stored_share,
)


@dataclass(frozen=True)
class EnforcedLayer:
    """What happened to one layer.

    Attributes:
        layer: its name.
        pattern: the pattern that it has now.
        density: share of its weights that are non-zero now.
        energy_dropped: share of the squared magnitude that projection removed, 0 to 1.
        skipped: why it was left alone, or None.
    """

    layer: str
    pattern: Pattern
    density: float
    energy_dropped: float
    skipped: str | None = None


@dataclass(frozen=True)
class EnforceResult(PassResult):
    """A pass result with one row per convolution and matrix product, in topological order."""

    layers: tuple[EnforcedLayer, ...] = ()


class EnforcePattern:
    """Make every eligible layer have a pattern, or refuse the model.

    Legal cases:

    1. A layer that already has the pattern is left as it is, bit for bit.
    2. With mode "project", any other eligible layer is projected by magnitude
       (`nmcompile.sparsity.project`), and the note says how much energy that dropped.
    3. With mode "verify", any other eligible layer is an error.
    4. With pattern "auto", every layer keeps the pattern it is found to have.

    Eligible are the convolutions and matrix products that `nmcompile.sparsity.left_out` does not
    leave alone.
    """

    name = "enforce_pattern"

    def __init__(
        self,
        pattern: Pattern | str = "auto",
        *,
        mode: Literal["verify", "project"] = "project",
        layers: Sequence[str] | None = None,
        density: float | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """Set the pattern and the layers.

        Args:
            pattern: a pattern or its spelling, or "auto".
            mode: "project" changes weights, "verify" never does.
            layers: names or wildcards (`layer1.*`) of the only layers to look at; None for all
                eligible ones.
            density: share of weights to keep, for 1xN and unstructured projection. A layer that
                has a 1xN pattern, but keeps more than this, is projected too.
            exclude: names or wildcards of layers to leave alone.

        Raises:
            PatternError: the spelling is no pattern.
        """
        self.pattern: Pattern | None
        if not isinstance(pattern, str):
            self.pattern = pattern
        else:
            self.pattern = None if pattern.strip().lower() == "auto" else parse_pattern(pattern)
        self.mode, self.layers, self.density, self.exclude = mode, layers, density, exclude

    def call(self, graph: Graph) -> EnforceResult:
        """Run on `graph` in place.

        Raises:
            PatternError: an unknown layer name, a missing density, or (mode "verify") a layer
                without the pattern; names the layer, the number of violations and the first.
        """
        skipped = left_out([_facts(layer) for layer in graph.layers()], self.layers, self.exclude)
        rows: list[EnforcedLayer] = []
        modified = False
        breaches: list[str] = []
        for op in graph.ops():
            if op.kind not in ("conv", "linear"):
                continue
            weight = op.weight
            assert weight is not None
            reason, dropped = skipped.get(op.name), 0.0
            if self.pattern is not None and reason is None:
                breach = self._breach(op.name, weight, self.pattern)
                if breach is not None and self.mode == "verify":
                    breaches.append(breach)
                elif breach is not None:
                    projected = project(weight, self.pattern, self.density)
                    dropped = 1.0 - energy_kept(weight, projected)
                    graph.set_weight(op, projected, op.bias)
                    weight, modified = projected, True
            pattern = self.pattern if self.pattern is not None and reason is None else None
            kept = float(np.count_nonzero(weight)) / max(weight.size, 1)
            found = pattern if pattern is not None else detect(weight).pattern
            rows.append(EnforcedLayer(op.name, found, kept, dropped, reason))
        if breaches:
            more = f" ({len(breaches) - 1} more layers break it too)" if breaches[1:] else ""
            raise PatternError(f"{breaches[0]}{more}; project the weights with --enforce")
        return EnforceResult(graph, modified, tuple(_note(row) for row in rows), tuple(rows))

    def _breach(self, name: str, weight: Array, pattern: Pattern) -> str | None:
        """What is wrong with the layer, or None."""
        if self.density is not None and check(weight, pattern, self.density).ok:
            return None
        result = check(weight, pattern)
        if not result.ok:
            return (
                f"layer {name}: its weight of shape {weight.shape} breaks {pattern} in "
                f"{result.violations} groups, the first at index {result.first}"
            )
        if isinstance(pattern, OneByN):
            kept = stored_share(weight, pattern)
        else:
            kept = np.count_nonzero(weight) / weight.size
        if self.density is not None and kept > self._most(weight, pattern):
            return (
                f"layer {name}: its weight of shape {weight.shape} has {pattern}, but keeps "
                f"{kept:.3f} of its weights; expected a density of at most {self.density}"
            )
        return None

    def _most(self, weight: Array, pattern: Pattern) -> float:
        """The density that projection may leave: whole input channels, and at least one."""
        assert self.density is not None
        channels = weight.shape[1] if isinstance(pattern, OneByN) else weight.size
        if not isinstance(pattern, OneByN) and str(pattern) != "unstructured":
            return 1.0
        return float(max(np.rint(self.density * channels), 1)) / channels


def enforce(
    graph: Graph,
    pattern: Pattern | str = "auto",
    *,
    mode: Literal["verify", "project"] = "project",
    layers: Sequence[str] | None = None,
    density: float | None = None,
    exclude: Sequence[str] = (),
) -> EnforceResult:
    """Verify or project in place; arguments and errors as in `EnforcePattern`."""
    step = EnforcePattern(pattern, mode=mode, layers=layers, density=density, exclude=exclude)
    return step.call(graph)


def _facts(layer: Layer) -> LayerFacts:
    return LayerFacts(layer.name, layer.op, layer.weight.shape[1] * layer.groups, layer.groups)


def _note(row: EnforcedLayer) -> Note:
    if row.skipped is not None:
        return Note(row.layer, f"left alone ({row.pattern}): {row.skipped}", left=True)
    if row.energy_dropped == 0.0:
        return Note(row.layer, f"has {row.pattern}, density {row.density:.3f}")
    return Note(
        row.layer,
        f"projected onto {row.pattern}, density {row.density:.3f}; dropped "
        f"{100 * row.energy_dropped:.2f} % of the weight energy",
    )
