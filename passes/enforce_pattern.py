"""Verify that layers have a pattern, or project them onto it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nmcompile.errors import PatternError
from nmcompile.passes.graphs.interface import Array, Graph, Layer, Note, PassResult, Weighted
from nmcompile.passes.permute_channels import OnStep, PermuteChannels, PermuteResult
from nmcompile.sparsity import (
    NM,
    PROJECT,
    Dense,
    LayerFacts,
    OneByN,
    Pattern,
    Pruning,
    check,
    detect,
    energy_kept,
    excess,
    left_out,
    one_density,
    parse_wanted,
    project,
)
from nmcompile.wording import way

SHOWN = 4  # layers in a message


@dataclass(frozen=True)
class EnforcedLayer:
    """What happened to one layer.

    Attributes:
        layer: its name.
        pattern: the pattern that it has now.
        density: share of its weights that are non-zero now.
        energy_dropped: share of the squared magnitude that projection removed, 0 to 1.
        skipped: why it was left alone, or None.
        energy_dropped_in_order: what projection would have dropped with the channels in the order
            given; None unless they were to be permuted.
        not_searched: why no order was searched for it, or None; what others ask for may move its
            channels all the same.
    """

    layer: str
    pattern: Pattern
    density: float
    energy_dropped: float
    skipped: str | None = None
    energy_dropped_in_order: float | None = None
    not_searched: str | None = None


@dataclass(frozen=True)
class EnforceResult(PassResult):
    """A pass result with one row per convolution and matrix product, in topological order.

    `finished` is False where the time limit ended the search for permutations, so that another run
    may find others.
    """

    layers: tuple[EnforcedLayer, ...] = ()
    finished: bool = True


class EnforcePattern:
    """Make every eligible layer have a pattern, or refuse the model.

    Legal cases:

    1. A layer that already has the pattern is left as it is, bit for bit.
    2. With mode "project", any other eligible layer is projected by magnitude
       (`nmcompile.sparsity.project`), and the note says how much energy that dropped.
    3. With mode "verify", any other eligible layer is an error.
    4. With pattern "auto", every layer keeps the pattern it is found to have.
    5. With `permute`, channels are put in an order that projection drops less of, before it runs
       (`PermuteChannels`). Layers of case 1 keep their pattern, but may be reordered by what
       their pattern allows, and so may layers that are left alone otherwise.

    6. What has constant weights but is no layer (`Graph.weighted`) is checked as any other, and
       projected where kernels compute it. Where a pattern concerns nothing that could be checked,
       it is an error.

    Eligible are the convolutions and matrix products that `nmcompile.sparsity.left_out` does not
    leave alone.
    """

    name = "enforce_pattern"

    def __init__(
        self,
        pattern: Pattern | str = "auto",
        pruning: Pruning = PROJECT,
        on_step: OnStep | None = None,
    ) -> None:
        """Set the pattern and the layers.

        Args:
            pattern: a pattern or its spelling (`1x16@0.5` says the density, too), or "auto".
            pruning: which layers, and what may be done to them.
            on_step: told how much of the search for an order of channels is done.

        Raises:
            PatternError: the spelling is no pattern, or the density or `permute` does not go with
                the rest.
        """
        self.pattern: Pattern | None = None
        if not isinstance(pattern, str):
            self.pattern = pattern
        elif pattern.strip().lower() != "auto":
            wanted = parse_wanted(pattern)
            self.pattern = wanted.pattern
            pruning = replace(pruning, density=one_density(wanted, pruning.density))
        self.pruning, self.on_step = pruning, on_step
        if pruning.permute:
            self._check_permute(pattern)

    def call(self, graph: Graph) -> EnforceResult:
        """Run on `graph` in place.

        Raises:
            PatternError: an unknown layer name, a missing density, or (mode "verify") a layer
                without the pattern; names the layer, the number of violations and the first.
        """
        others = graph.weighted()
        facts = [_facts(layer) for layer in graph.layers()]
        facts += [_other_facts(other) for other in others]
        skipped = left_out(facts, self.pruning.layers, self.pruning.exclude)
        rows: list[EnforcedLayer] = []
        permuted = self._permute(graph, skipped) if self.pruning.permute else None
        modified = permuted is not None and permuted.modified
        orders = {row.layer: row for row in permuted.layers} if permuted is not None else {}
        breaches: list[str] = []
        for op in graph.ops():
            if op.kind not in ("conv", "linear"):
                continue
            weight = op.weight
            assert weight is not None
            reason, dropped = skipped.get(op.name), 0.0
            if self.pattern is not None and reason is None:
                breach = self._breach(op.name, weight, self.pattern)
                if breach is not None and self.pruning.mode == "verify":
                    breaches.append(breach)
                elif breach is not None:
                    projected = project(weight, self.pattern, self.pruning.density)
                    dropped = 1.0 - energy_kept(weight, projected)
                    graph.set_weight(op, projected, op.bias)
                    weight, modified = projected, True
            pattern = self.pattern if self.pattern is not None and reason is None else None
            kept = float(np.count_nonzero(weight)) / max(weight.size, 1)
            found = pattern if pattern is not None else detect(weight).pattern
            order = orders.get(op.name)
            rows.append(
                EnforcedLayer(
                    op.name,
                    found,
                    kept,
                    dropped,
                    reason,
                    None if order is None else 1.0 - order.before,
                    None if order is None else order.left,
                )
            )
        for other in others:
            row, breach = self._other(graph, other, skipped.get(other.name))
            rows.append(row)
            modified |= row.energy_dropped > 0
            if breach is not None and self.pruning.mode == "verify":
                breaches.append(breach)
        if self.pattern is not None and not breaches:
            self._refuse_unchecked(rows)
        if breaches:
            more = f" ({len(breaches) - 1} more layers break it too)" if breaches[1:] else ""
            raise PatternError(
                f"{breaches[0]}{more}; project the weights with "
                f"{way('--enforce', 'pruning=Pruning()')}"
            )
        finished = permuted is None or permuted.finished
        return EnforceResult(graph, modified, tuple(map(_note, rows)), tuple(rows), finished)

    def _other(
        self, graph: Graph, other: Weighted, reason: str | None
    ) -> tuple[EnforcedLayer, str | None]:
        """The row of what is no layer, and what was wrong with it."""
        if other.weight is None:
            reason = reason or f"no pattern can be checked: {other.reason}"
            return EnforcedLayer(other.name, Dense(), 1.0, 0.0, reason), None
        kept = float(np.count_nonzero(other.weight)) / max(other.weight.size, 1)
        breach = None
        if self.pattern is not None and reason is None:
            breach = self._breach(other.name, other.weight, self.pattern)
        if breach is not None and self.pruning.mode == "project" and other.handle is not None:
            assert self.pattern is not None
            weight = project(other.weight, self.pattern, self.pruning.density)
            graph.set_other_weight(other, weight)
            kept = float(np.count_nonzero(weight)) / weight.size
            dropped = 1.0 - energy_kept(other.weight, weight)
            return EnforcedLayer(other.name, self.pattern, kept, dropped), breach
        if breach is not None:
            reason = f"{other.op} is not projected: {breach}"
        if self.pattern is None or reason is not None:
            found = detect(other.weight).pattern
            return EnforcedLayer(other.name, found, kept, 0.0, reason), breach
        return EnforcedLayer(other.name, self.pattern, kept, 0.0), None

    def _refuse_unchecked(self, rows: Sequence[EnforcedLayer]) -> None:
        """Refuse a claim that no layer was held against."""
        if any(row.skipped is None for row in rows):
            return
        shown = "; ".join(f"{row.layer}: {row.skipped}" for row in rows[:SHOWN])
        more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        raise PatternError(
            f"pattern {self.pattern}: expected at least one layer that it concerns, found none "
            f"({shown or 'the model has no layer with constant weights'}{more}); compile the model "
            f"with {way('--pattern auto', repr('auto'))}, or name its layers"
        )

    def _check_permute(self, pattern: Pattern | str) -> None:
        if self.pruning.mode == "verify":
            raise PatternError(
                "permute: expected mode 'project', found 'verify', which changes no weight; "
                "project with permute first and verify the result"
            )
        if not isinstance(self.pattern, NM | OneByN):
            raise PatternError(
                f"permute: expected an N:M or 1xN pattern, found {pattern}, for which the order of "
                "channels is of no consequence; name one (2:4, 1x16), or leave permute out"
            )
        if not self.pruning.time_limit >= 0:
            raise PatternError(
                "permute: expected a time limit of at least 0 seconds, found "
                f"{self.pruning.time_limit}"
            )

    def _permute(self, graph: Graph, skipped: Mapping[str, str]) -> PermuteResult:
        """Reorder channels for the layers that are going to be projected."""
        assert self.pattern is not None
        names = [
            layer.name
            for layer in graph.layers()
            if layer.name not in skipped
            and self._breach(layer.name, layer.weight, self.pattern) is not None
        ]
        return PermuteChannels(
            self.pattern,
            names,
            density=self.pruning.density,
            seed=self.pruning.seed,
            time_limit=self.pruning.time_limit,
            on_step=self.on_step,
        ).call(graph)

    def _breach(self, name: str, weight: Array, pattern: Pattern) -> str | None:
        """What is wrong with the layer, or None."""
        if self.pruning.density is not None and check(weight, pattern, self.pruning.density).ok:
            return None
        result = check(weight, pattern)
        if not result.ok:
            return (
                f"layer {name}: its weight of shape {weight.shape} breaks {pattern} in "
                f"{result.violations} groups, the first at index {result.first}"
            )
        if self.pruning.density is None:
            return None
        kept = excess(weight, pattern, self.pruning.density)
        if kept is not None:
            return (
                f"layer {name}: its weight of shape {weight.shape} has {pattern}, but keeps "
                f"{kept:.3f} of its weights; expected a density of at most {self.pruning.density}"
            )
        return None


def _facts(layer: Layer) -> LayerFacts:
    return LayerFacts(layer.name, layer.op, layer.weight.shape[1] * layer.groups, layer.groups)


def _other_facts(other: Weighted) -> LayerFacts:
    if other.weight is None or not other.pieces:
        return LayerFacts(other.name, "other", 0)
    if other.pieces[0].op != "conv2d":
        return LayerFacts(other.name, "recurrent", other.weight.shape[1])
    return LayerFacts(other.name, "conv2d", other.weight.shape[1] * other.groups, other.groups)


def _note(row: EnforcedLayer) -> Note:
    if row.skipped is not None:
        return Note(row.layer, f"left alone ({row.pattern}): {row.skipped}", left=True)
    if row.energy_dropped == 0.0:
        return Note(row.layer, f"has {row.pattern}, density {row.density:.3f}")
    text = (
        f"projected onto {row.pattern}, density {row.density:.3f}; dropped "
        f"{100 * row.energy_dropped:.2f} % of the weight energy"
    )
    if row.energy_dropped_in_order is not None:
        text += f", {100 * row.energy_dropped_in_order:.2f} % before channels were permuted"
    if row.not_searched is not None:
        text += f" (no order was searched for it: {row.not_searched})"
    return Note(row.layer, text)
