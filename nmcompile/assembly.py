"""What was compiled, whole or in parts, as the contents of one artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile import runtime
from nmcompile.building import Built, TunedLayer
from nmcompile.frontends import SourceModel
from nmcompile.passes.graphs.interface import Layer, Weighted
from nmcompile.reports import (
    InspectionReport,
    LayerReport,
    report_elsewhere,
    report_segments,
    with_model_shapes,
)
from nmcompile.runtime.chain import RUNS
from nmcompile.runtime.steps import LIBRARY, ONNX, Step
from nmcompile.segments import rest
from nmcompile.segments.divide import Divided, Part
from nmcompile.targets import Target
from nmcompile.version import VERSION

Params = Mapping[str, npt.NDArray[np.generic]]

SHOWN = 5
"""Operators of a part that profiles name."""

MIXED = "onnxruntime runs some of the model, and whether images are computed apart is not known"
"""Why the compiler proves nothing of the images of a batch."""


@dataclass(frozen=True, eq=False)
class Assembled:
    """What an artifact is written of, and what is said of it.

    library, params: as `runtime.write_artifact` takes them.
    """

    manifest: runtime.Manifest
    library: bytes | Mapping[str, bytes]
    params: Params
    report: InspectionReport
    tuning: tuple[TunedLayer, ...]


def assemble(
    sources: Sequence[SourceModel], target: Target, made: Built | Divided[Built], digest: str
) -> Assembled:
    """Put an artifact together.

    Args:
        sources: the model, for each of its shapes.
        target: what it was compiled for.
        made: its library, or its parts.
        digest: the sha256 of its file in hex, or "".

    Raises:
        UnsupportedOperatorError: onnxruntime does not take a part, or an output is no tensor.
        ModelError: a part does not fit one file.
    """
    source = sources[0]
    parts = _whole(made) if isinstance(made, Built) else _in_parts(sources, made)
    parts.layers = with_model_shapes(parts.layers, source)
    version = rest.version() if isinstance(made, Divided) else ""
    first, *others = parts.forms
    manifest = runtime.Manifest(
        producer=_producer(version),
        target=runtime.TargetInfo(target.name, target.machine, target.cpu_features),
        inputs=first.inputs,
        outputs=first.outputs,
        model=runtime.ModelInfo(Path(source.title).stem, digest),
        layers=_with_flow([layer.to_dict() for layer in parts.layers], first.calls, parts.flow),
        calls=first.calls,
        prepare=made.prepare if isinstance(made, Built) else "",
        steps=() if others else first.steps,
        entry=first.entry,
        variants=tuple(parts.forms) if others else (),
        batched=made.batched if isinstance(made, Built) else (),
        values=() if others else first.values,
    )
    notes = list(dict.fromkeys(parts.notes))
    together = made.together if isinstance(made, Built) else MIXED
    if others and together:
        notes.append(f"a batch is run as one of the shapes, and not in parts: {together}")
    if isinstance(made, Divided) and not version:
        notes.append(
            "onnxruntime is not installed here: whether it takes its parts was not tried; pip "
            "install onnxruntime"
        )
    segments = report_segments(made) if isinstance(made, Divided) else ()
    report = InspectionReport(
        source.title, tuple(parts.layers), tuple(notes), parts.leftovers, segments
    )
    contents: bytes | Mapping[str, bytes] = parts.contents
    if isinstance(made, Built):
        contents = made.library
    return Assembled(manifest, contents, parts.params, report, tuple(parts.tuning))


@dataclass(eq=False)
class _Parts:
    """What the parts of a model add up to.

    forms: the model for each shape; all else is of the first.
    flow: as `runtime/FORMAT.md` describes it, of the calls of libraries.
    """

    forms: Sequence[runtime.Variant] = ()
    contents: dict[str, bytes] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    flow: list[dict[str, Any]] = field(default_factory=list)
    leftovers: Counter[str] = field(default_factory=Counter)
    tuning: list[TunedLayer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, built: Built, first: int = 0) -> None:
        """What is the same for a whole model and a part, whose calls come behind the `first`."""
        self.layers += built.layers
        for place, call in enumerate(built.flow, first):
            reads = [first + read if isinstance(read, int) else read for read in call.reads]
            entry = {"call": place, "reads": reads, "shape": list(call.shape)}
            self.flow.append(entry | ({"makes": list(call.makes)} if call.makes else {}))
        self.leftovers.update(built.leftovers)
        self.tuning += built.tuning
        self.notes += built.notes


@dataclass(eq=False)
class _Form:
    """What the parts of a model are for one shape. specs: of the tensors that they make, too."""

    source: SourceModel
    steps: list[Step] = field(default_factory=list)
    calls: list[runtime.Call] = field(default_factory=list)
    specs: dict[str, runtime.TensorSpec] = field(default_factory=dict)

    def variant(self, between: Sequence[str]) -> runtime.Variant:
        """All of it, with the tensors that cross."""
        inputs = tuple(runtime.TensorSpec(*spec) for spec in self.source.inputs)
        specs = {spec.name: spec for spec in inputs} | self.specs
        outputs = tuple(specs[name] for name in self.source.outputs)
        return runtime.Variant(
            entry="",
            inputs=inputs,
            outputs=outputs,
            weights=(),
            calls=tuple(self.calls),
            steps=tuple(self.steps),
            values=tuple(specs[name] for name in between),
        )


def _whole(built: Built) -> _Parts:
    parts = _Parts(built.variants, params=dict(built.params))
    parts.add(built)
    return parts


def _in_parts(sources: Sequence[SourceModel], divided: Divided[Built]) -> _Parts:
    parts, forms, source = _Parts(), [_Form(source) for source in sources], sources[0]
    ours = [part for part in divided.parts if part.ours]
    wanted = {*source.outputs, *(name for part in ours for name in part.inputs)}
    about = [segment.to_dict() for segment in report_segments(divided)]
    several = len(forms) > 1
    for index, (part, built) in enumerate(zip(divided.parts, divided.made, strict=True)):
        ends = part.inputs, part.outputs
        if built is None:
            sections = _sections(parts, index, rest.check_rest(part, source.title))
            for number, (form, section) in enumerate(zip(forms, sections, strict=True)):
                form.specs.update(rest.output_specs(part, number, wanted))
                form.calls.append(runtime.Call(RUNS, f"{RUNS}: {_spell(part)}"))
                none = () if several else None
                form.steps.append(Step(ONNX, section, *ends, about=about[index], weights=none))
            continue
        section = f"{LIBRARY}.{index}"
        parts.contents[section] = built.library
        # Parts name their weights alike.
        parts.params |= {f"{section}/{name}": array for name, array in built.params.items()}
        parts.add(built, len(forms[0].calls))
        for form, variant in zip(forms, built.variants, strict=True):
            form.specs.update((spec.name, spec) for spec in variant.outputs)
            form.calls += variant.calls
            form.steps.append(
                Step(
                    *(LIBRARY, section, *ends, variant.entry, built.prepare),
                    params=len(built.params),
                    about=about[index],
                    weights=variant.weights if several else None,
                )
            )
    known_ends = {name for name, _, _ in source.inputs} | set(source.outputs)
    crossing = dict.fromkeys(name for part in ours for name in (*part.inputs, *part.outputs))
    between = [name for name in crossing if name not in known_ends]
    parts.forms = [form.variant(between) for form in forms]
    known: list[Layer | Weighted] = [*source.graph.layers(), *source.graph.weighted()]
    parts.layers += [
        report_elsewhere(layer, divided.elsewhere[layer.name])
        for layer in known
        if layer.name in divided.elsewhere
    ]
    return parts


def _sections(parts: _Parts, index: int, contents: Sequence[bytes]) -> list[str]:
    """The section of a part of onnxruntime's for each shape; what is the same is there once."""
    known = dict[bytes, str]()
    for number, content in enumerate(contents):
        known.setdefault(content, f"{ONNX}.{index}" + (f".{number}" if known else ""))
    parts.contents |= {section: content for content, section in known.items()}
    return [known[content] for content in contents]


def _with_flow(
    layers: list[dict[str, Any]], calls: Sequence[runtime.Call], flow: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """The layers with what is known of the calls: each has its own, and those of none before it."""
    by_name = {layer["name"]: layer for layer in layers}
    waiting: list[dict[str, Any]] = []
    last: dict[str, Any] | None = None
    for entry in flow:
        waiting.append(entry)
        owner = by_name.get(calls[entry["call"]].layer)
        if owner is not None:
            owner.setdefault("flow", []).extend(waiting)
            waiting, last = [], owner
    if last is not None and waiting:
        last["flow"] += waiting
    return tuple(layers)


def _spell(part: Part) -> str:
    """Its operators, the most frequent first."""
    names = sorted(part.operators, key=lambda name: -part.operators[name])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _producer(onnxruntime: str) -> runtime.Producer:
    import tvm
    import tvm_ffi

    return runtime.Producer(VERSION, tvm.__version__, tvm_ffi.__version__, onnxruntime)
