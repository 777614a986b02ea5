"""What a model's layers are, which pattern each has, and how each will be lowered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nmcompile.explain import explained
from nmcompile.folding import open_folded, without_zero_channels
from nmcompile.frontends import SourceModel
from nmcompile.kernels.catalog import choose
from nmcompile.layer_names import LayerNames
from nmcompile.progress import Progress, silent
from nmcompile.reports import (
    InspectionReport,
    LayerReport,
    held,
    real_notes,
    report_choice,
    report_elsewhere,
    report_layer,
    report_other,
    report_segments,
    scattered_notes,
    target_notes,
    with_model_shapes,
)
from nmcompile.segments.divide import Divided
from nmcompile.segments.whole import check_rest_option, taken
from nmcompile.sparsity import CheckResult, Pattern, parse_wanted
from nmcompile.targets import Target, find_target

if TYPE_CHECKING:
    from nmcompile.passes.lowering.kernels import Found


@explained
def inspect(
    model: Any,
    *,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    pattern: Pattern | str = "auto",
    target: str = "avx512",
    rest: str = "onnxruntime",
    progress: Progress = silent,
) -> InspectionReport:
    """Fold a copy of the model and report every layer.

    Args:
        model: as for `nmcompile.compile`.
        example_inputs: for torch models.
        shapes: input shapes by name, where an ONNX model leaves them open.
        pattern: the pattern that layers are checked against; "auto" takes what each layer holds.
        target: the target whose kernels are consulted.
        rest: as for `nmcompile.compile`.
        progress: told what is going on.

    Raises:
        NmcompileError: the model cannot be read, folded or imported, or the target is "cuda" and
            there is no GPU.
    """
    chosen = find_target(target)
    check_rest_option(rest)
    asked = str(pattern).strip().lower()
    wanted = None if asked == "auto" else parse_wanted(asked)
    source, result = open_folded(
        model, example_inputs, shapes=shapes, progress=progress, smaller=False
    )
    progress("checking the patterns")
    given = {layer.name: held(layer.weight, wanted) for layer in source.graph.layers()}
    found_notes = result.notes
    if asked != "dense":
        source, removed = without_zero_channels(source)
        found_notes += removed
    progress("importing into TVM")
    (source,), made, why = taken([source], chosen, rest, partial(_look, target=chosen))
    looks = [made] if isinstance(made, _Look) else [look for look in made.made if look is not None]
    elsewhere = made.elsewhere if isinstance(made, Divided) else {}
    layers = tuple(
        report_elsewhere(layer, elsewhere[layer.name], wanted)
        if layer.name in elsewhere
        else report_layer(layer, chosen.name, wanted)
        for layer in source.graph.layers()
    )
    layers += tuple(
        report_elsewhere(other, elsewhere[other.name], wanted)
        if other.name in elsewhere
        else report_other(other, chosen.name, wanted)
        for other in source.graph.weighted()
    )
    layers = tuple(
        _as_given(row, given[row.name]) if row.model_shape else row
        for row in with_model_shapes(layers, source)
    )
    notes = [f"{note.layer}: {note.text}" for note in found_notes] + [*filter(None, [why])]
    notes += scattered_notes(layers)
    leftovers: Counter[str] = Counter()
    for look in looks:
        if chosen.integers:
            layers = _as_integers(look.source, layers, look.found, chosen.name)
        notes += real_notes(look.source, look.found.real)
        leftovers.update(look.found.leftovers)
    segments = report_segments(made) if isinstance(made, Divided) else ()
    notes += target_notes(source, chosen)
    checked = "" if wanted is None else str(wanted)
    return InspectionReport(source.title, layers, tuple(notes), dict(leftovers), segments, checked)


@dataclass(frozen=True, eq=False)
class _Look:
    """What the kernels of a target compute of a model, or of a part of one."""

    source: SourceModel
    found: Found


def _look(sources: Sequence[SourceModel], target: Target) -> _Look:
    (source,) = sources
    return _Look(source, _find_problems(source, target))


def _find_problems(source: SourceModel, target: Target) -> Found:
    """What the kernels of a target compute of a folded model."""
    from nmcompile.backends import backend_of
    from nmcompile.passes.lowering.kernels import detect_group, find_problems

    backend = backend_of(target)
    # Only layers in integers are reported with what is found here; the others are known already.
    pattern_of = detect_group if target.integers else lambda group: None
    module = backend.arrange(backend.simplify(source.to_relax()))
    return find_problems(module, pattern_of, backend.lowering)


def _as_given(row: LayerReport, checked: CheckResult | None) -> LayerReport:
    """A row that says whether the weight held what was asked for while it was whole."""
    if checked is None:
        return row
    return replace(row, violations=checked.violations, first_violation=checked.first)


def _as_integers(
    source: SourceModel, rows: Sequence[LayerReport], found: Found, target: str
) -> tuple[LayerReport, ...]:
    """The rows, those of quantised layers with the kernels that they get."""
    known = {layer.name: layer for layer in source.graph.layers()}
    names, others = LayerNames(source.graph.layers()), {row.name: row for row in rows}
    for group, problem in found.problems:
        name = names.of(group)
        if name not in known or problem.integers is None or problem.detection is None:
            continue
        choice, row = choose(group.op, target, problem), others[name]
        others[name] = replace(
            report_choice(known[name], problem.detection, choice),
            violations=row.violations,
            first_violation=row.first_violation,
        )
    return tuple(others.values())
