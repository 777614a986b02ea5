"""What is said of a model's layers and parts: rows and notes, made of what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from nmcompile.errors import ShapeError, TargetError
from nmcompile.frontends import SourceModel
from nmcompile.kernels.catalog import Choice, choose
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.recurrence import Recurrent, RecurrentKind
from nmcompile.kernels.spec import Conv2d, Linear
from nmcompile.layer_names import LayerNames
from nmcompile.passes.graphs.interface import Array, Graph, Layer, Weighted
from nmcompile.segments.divide import Divided
from nmcompile.sparsity import (
    NM,
    CheckResult,
    Dense,
    Detection,
    Wanted,
    check,
    detect,
    excess,
)
from nmcompile.tables import (
    printable,
    spell_facts,
    spell_layers,
    spell_operators,
    spell_segments,
)
from nmcompile.targets import TARGETS, Target, find_target
from nmcompile.wording import way

if TYPE_CHECKING:
    from nmcompile.passes.lowering.matching.match import Group

NMCOMPILE, ONNXRUNTIME = "nmcompile", "onnxruntime"
"""Who runs a segment."""


@dataclass(frozen=True)
class LayerReport:
    """One convolution or matrix product.

    pattern: what the weight holds ("2:4", "1x16", "unstructured", "dense"); axis: of N:M patterns.
    also: the other patterns that hold.
    density: share of non-zero weights. macs: multiply-accumulates of the dense layer, whole batch.
    violations, first_violation: of the pattern that was asked for, 0 and None where it holds.
    sparse: whether the kernel skips the zeros. reason: why not, or "".
    scattered: whether the filters of its 1xN blocks lie all over the layer.
    model_shape: of the weight in the model, where `shape` is smaller by channels that the model can
        do without; else ().
    """

    name: str
    op: str
    shape: tuple[int, ...]
    pattern: str
    axis: str
    also: tuple[str, ...]
    density: float
    macs: int
    violations: int
    first_violation: tuple[int, ...] | None
    kernel: str
    sparse: bool
    reason: str
    scattered: bool = False
    model_shape: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class SegmentReport:
    """Operators that run together.

    runs: "nmcompile" or "onnxruntime". nodes: how many. operators: how often each is among them.
    reasons: why they are not ours, one sentence for each that is different.
    """

    runs: str
    nodes: int
    operators: Mapping[str, int]
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runs": self.runs,
            "nodes": self.nodes,
            "operators": dict(self.operators),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class InspectionReport:
    """All layers of a folded model.

    notes: what the folding passes had to say, one sentence each.
    other_operators: Relax operators that no kernel of ours computes, with their number: they take
        TVM's own lowering.
    segments: what runs in turn, of a model of which onnxruntime runs parts; else none.
    checked: the pattern that layers were held against, "" for none.

    `print` shows what the command line does.
    """

    title: str
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    other_operators: Mapping[str, int] | None = None
    segments: tuple[SegmentReport, ...] = ()
    checked: str = ""

    def __str__(self) -> str:
        """The tables, the notes, and what all layers come to."""
        return self.spelled({"model": self.title})

    def spelled(
        self,
        before: Mapping[str, str],
        tables: Sequence[str] = (),
        after: Mapping[str, str] | None = None,
    ) -> str:
        """The report between other facts, with other tables behind its own."""
        parts = []
        if self.layers:
            rows = [layer.to_dict() for layer in self.layers]
            parts.append(spell_layers(rows, checked=bool(self.checked)) + "\n")
        if self.segments:
            parts.append(spell_segments([part.to_dict() for part in self.segments]) + "\n")
        parts += [f"{table}\n" for table in tables]
        parts += [f"note: {printable(note)}" for note in self.notes]
        sparse = sum(layer.sparse for layer in self.layers)
        facts = {
            "layers": f"{len(self.layers)}, {sparse} of them sparse; "
            f"{self.density:.1%} of the dense multiply-accumulates remain",
            "other": spell_operators(self.other_operators or {}),
        }
        return "\n".join([*parts, spell_facts({**before, **facts, **(after or {})})])

    @property
    def macs(self) -> int:
        """Dense multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def density(self) -> float:
        """Share of the dense multiply-accumulates that touch non-zero weights."""
        done = sum(layer.macs * layer.density for layer in self.layers)
        return done / self.macs if self.macs else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "title": self.title,
            "macs": self.macs,
            "density": self.density,
            "layers": [layer.to_dict() for layer in self.layers],
            "notes": list(self.notes),
            "other_operators": dict(self.other_operators or {}),
            "segments": [segment.to_dict() for segment in self.segments],
        }


def target_notes(source: SourceModel, target: Target) -> tuple[str, ...]:
    """What to say where another target would run a quantised model as it is meant."""
    count = sum(layer.integers is not None for layer in source.graph.layers())
    if not count or target.integers:
        return ()
    able = [other.name for other in TARGETS if other.integers]
    better = way(f"--target {' or '.join(able)}", f"target={' or '.join(map(repr, able))}")
    return (
        f"{count} layers are quantised, and computed in {target.dtype}: {better} runs them on "
        "integers",
    )


def real_notes(source: SourceModel, real: Sequence[tuple[Group | None, str]]) -> tuple[str, ...]:
    """What to say about what of a quantised model is computed on real numbers."""
    names = LayerNames(source.graph.computed() if real else ())
    return tuple(
        why if group is None else f"{names.of(group)}: is computed in float32: {why}"
        for group, why in real
    )


def report_layer(layer: Layer, target: str, wanted: Wanted | None = None) -> LayerReport:
    """One row for a layer that is not lowered yet: its pattern, and the kernel it would get."""
    detection = detect(layer.weight)
    checked = held(layer.weight, wanted)
    try:
        choice = choose(layer.op, target, _problem(layer, detection, find_target(target).dtype))
    except TargetError as error:  # what it says is the reason, and the other layers are of interest
        return replace(_layer_row(layer, detection, checked), reason=str(error))
    return report_choice(layer, detection, choice, checked)


def report_other(other: Weighted, target: str, wanted: Wanted | None = None) -> LayerReport:
    """One row for what has constant weights and is no layer: with the kernel of its pieces."""
    row = _other_row(other, wanted)
    if other.pieces:
        largest = max(other.pieces, key=lambda piece: piece.macs or 0)
        return _with_kernel(row, report_layer(largest, target))
    more = f"; {row.reason}" if row.reason else ""
    return replace(row, reason=f"{other.op} has no kernel of ours{more}")


def report_choices(
    graph: Graph, choices: Sequence[tuple[str, Problem, Choice]]
) -> tuple[LayerReport, ...]:
    """Rows of the layers that kernels were chosen for, and of what is computed in pieces."""
    layers = {layer.name: layer for layer in graph.layers()}
    others = {other.name: other for other in graph.weighted() if other.pieces}
    rows, sizes = dict[str | int, LayerReport](), Counter[str]()
    for index, (name, problem, choice) in enumerate(choices):
        if problem.detection is None or problem.weight is None:
            continue
        if name in layers:
            rows[index] = report_choice(layers[name], problem.detection, choice)
        elif name in others and problem.weight.size > sizes[name]:
            sizes[name] = problem.weight.size
            of_piece = report_choice(others[name].pieces[0], problem.detection, choice)
            rows[name] = _with_kernel(_other_row(others[name]), of_piece)
    return tuple(rows.values())


def _other_row(other: Weighted, wanted: Wanted | None = None) -> LayerReport:
    if other.weight is None:
        return LayerReport(
            *(other.name, other.op, (), "unknown", "", (), 1.0, other.macs or 0, 0, None, "none"),
            sparse=False,
            reason=f"no pattern can be checked: {other.reason}",
        )
    checked = held(other.weight, wanted)
    return _row(other.name, other.op, other.weight, other.macs, detect(other.weight), checked)


def _with_kernel(row: LayerReport, of_piece: LayerReport) -> LayerReport:
    return replace(row, kernel=of_piece.kernel, sparse=of_piece.sparse, reason=of_piece.reason)


def report_choice(
    layer: Layer, detection: Detection, choice: Choice, checked: CheckResult | None = None
) -> LayerReport:
    """One row: the pattern that a layer is lowered with, and its kernel."""
    kernel, reason = choice.kernel, choice.reason
    if "depthwise" in kernel.name:
        reason = "depthwise: one weight per tap, nothing to skip"
    row = _layer_row(layer, detection, checked)
    return replace(row, kernel=kernel.name, sparse=kernel.sparse, reason=reason)


def held(weight: Array, wanted: Wanted | None) -> CheckResult | None:
    """A weight held against what was asked for, if anything was.

    One that has the pattern breaks it only by keeping more than was said: then what projection
    would drop counts.
    """
    if wanted is None:
        return None
    found, density = check(weight, wanted.pattern), wanted.density
    if found.ok and density is not None and excess(weight, wanted.pattern, density) is not None:
        return check(weight, wanted.pattern, density)
    return found


def _layer_row(layer: Layer, detection: Detection, checked: CheckResult | None) -> LayerReport:
    return _row(layer.name, layer.op, layer.weight, layer.macs, detection, checked)


def _row(
    name: str,
    op: str,
    weight: Array,
    macs: int | None,
    detection: Detection,
    checked: CheckResult | None,
) -> LayerReport:
    """One row of a layer without a kernel."""
    pattern = detection.pattern
    return LayerReport(
        name=name,
        op=op,
        shape=weight.shape,
        pattern=str(pattern),
        axis=pattern.axis if isinstance(pattern, NM) else "",
        also=tuple(str(p) for p in detection.holds if p != pattern and not isinstance(p, Dense)),
        density=detection.density,
        macs=macs or 0,
        violations=checked.violations if checked is not None else 0,
        first_violation=checked.first if checked is not None else None,
        kernel="none",
        sparse=False,
        reason="",
        scattered=detection.order is not None,
    )


def with_model_shapes(layers: Iterable[LayerReport], source: SourceModel) -> list[LayerReport]:
    """The rows, with what their weights were in the model."""
    shapes = source.model_shapes
    return [replace(layer, model_shape=shapes.get(layer.name, ())) for layer in layers]


def report_elsewhere(
    layer: Layer | Weighted, reason: str, wanted: Wanted | None = None
) -> LayerReport:
    """One row for what onnxruntime computes."""
    if isinstance(layer, Weighted):
        row = _other_row(layer, wanted)
    else:
        checked = held(layer.weight, wanted)
        row = _layer_row(layer, detect(layer.weight), checked)
    return replace(row, kernel=ONNXRUNTIME, reason=f"runs in onnxruntime: {reason}")


def report_segments(divided: Divided[Any]) -> tuple[SegmentReport, ...]:
    """The parts of a model."""
    return tuple(
        SegmentReport(
            NMCOMPILE if part.ours else ONNXRUNTIME,
            len(part.nodes),
            part.operators,
            tuple(dict.fromkeys(part.reasons.values())),
        )
        for part in divided.parts
    )


def scattered_notes(layers: Sequence[LayerReport]) -> tuple[str, ...]:
    """What to say about layers whose blocks are not as the pattern's name has them."""
    return tuple(
        f"{layer.name}: the filters of its {layer.pattern} blocks are scattered over the layer, as "
        "rearranging filters before pruning leaves them; they are stored block by block"
        for layer in layers
        if layer.scattered
    )


def _problem(layer: Layer, detection: Detection, dtype: str) -> Problem:
    if layer.input_shape is None:
        raise ShapeError(
            f"layer {layer.name}: the shape of its input is unknown; expected static shapes: fix "
            "the model's input shapes with "
            f"{way('--shape NAME=1,3,224,224', 'shapes={NAME: (1, 3, 224, 224)}')}"
        )
    spec: Conv2d | Linear | Recurrent
    if layer.op == "recurrent":
        assert layer.output_shape is not None
        steps, batch, directions, hidden = layer.output_shape
        kind: RecurrentKind = "lstm" if len(layer.weight) == 4 * directions * hidden else "gru"
        spec = Recurrent(
            kind, steps, batch, hidden, "bidirectional" if directions > 1 else "forward"
        )
    elif layer.op == "linear":
        spec = Linear(layer.input_shape[:-1], layer.weight.shape[1], layer.weight.shape[0])
    else:
        batch, channels, height, width = layer.input_shape
        out, _, kh, kw = layer.weight.shape
        spec = Conv2d(
            batch, channels, height, width, out, (kh, kw), layer.stride, layer.padding,
            layer.dilation, layer.groups,
        )  # fmt: skip
    return Problem(spec, weight=layer.weight, detection=detection, dtype=dtype)
