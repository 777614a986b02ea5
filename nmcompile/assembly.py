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
    source: SourceModel, target: Target, made: Built | Divided[Built], digest: str
) -> Assembled:
    """Put an artifact together.

    Args:
        source: the model.
        target: what it was compiled for.
        made: its library, or its parts.
        digest: the sha256 of its file in hex, or "".

    Raises:
        UnsupportedOperatorError: onnxruntime does not take a part, or an output is no tensor.
        ModelError: a part does not fit one file.
    """
    parts = _whole(made) if isinstance(made, Built) else _in_parts(source, made)
    parts.layers = with_model_shapes(parts.layers, source)
    inputs = tuple(runtime.TensorSpec(*spec) for spec in source.inputs)
    specs = {spec.name: spec for spec in inputs} | parts.specs
    version = rest.version() if parts.steps else ""
    manifest = runtime.Manifest(
        producer=_producer(version),
        target=runtime.TargetInfo(target.name, target.machine, target.cpu_features),
        inputs=inputs,
        outputs=tuple(specs[name] for name in source.outputs),
        model=runtime.ModelInfo(Path(source.title).stem, digest),
        layers=_with_flow([layer.to_dict() for layer in parts.layers], parts.calls, parts.flow),
        calls=tuple(parts.calls),
        prepare=made.prepare if isinstance(made, Built) else "",
        steps=tuple(parts.steps),
        entry=made.entry if isinstance(made, Built) else "",
        variants=made.variants if isinstance(made, Built) else (),
        batched=made.batched if isinstance(made, Built) else (),
        values=tuple(specs[name] for name in parts.between),
    )
    notes = list(dict.fromkeys(parts.notes))
    if parts.steps and not version:
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

    specs: of the tensors that they make. between: names of those that cross.
    flow: as `runtime/FORMAT.md` describes it, of the calls of libraries.
    """

    steps: list[Step] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    specs: dict[str, runtime.TensorSpec] = field(default_factory=dict)
    between: list[str] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    calls: list[runtime.Call] = field(default_factory=list)
    flow: list[dict[str, Any]] = field(default_factory=list)
    leftovers: Counter[str] = field(default_factory=Counter)
    tuning: list[TunedLayer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, built: Built) -> None:
        """What is the same for a whole model and a part."""
        self.specs.update((spec.name, spec) for spec in built.outputs)
        self.layers += built.layers
        first = len(self.calls)
        self.calls += built.calls
        for place, call in enumerate(built.flow, first):
            reads = [first + read if isinstance(read, int) else read for read in call.reads]
            entry = {"call": place, "reads": reads, "shape": list(call.shape)}
            self.flow.append(entry | ({"makes": list(call.makes)} if call.makes else {}))
        self.leftovers.update(built.leftovers)
        self.tuning += built.tuning
        self.notes += built.notes


def _whole(built: Built) -> _Parts:
    parts = _Parts(params=dict(built.params))
    parts.add(built)
    return parts


def _in_parts(source: SourceModel, divided: Divided[Built]) -> _Parts:
    parts = _Parts()
    ours = [part for part in divided.parts if part.source is not None]
    wanted = {*source.outputs, *(name for part in ours for name in part.inputs)}
    for index, (part, built) in enumerate(zip(divided.parts, divided.made, strict=True)):
        if built is None:
            section = f"{ONNX}.{index}"
            parts.contents[section] = rest.check_rest(part, source.title)
            parts.specs.update(rest.output_specs(part, wanted))
            parts.calls.append(runtime.Call(RUNS, f"{RUNS}: {_spell(part)}"))
            step = Step(ONNX, section, part.inputs, part.outputs)
        else:
            section = f"{LIBRARY}.{index}"
            parts.contents[section] = built.library
            # Parts name their weights alike.
            parts.params |= {f"{section}/{name}": array for name, array in built.params.items()}
            parts.add(built)
            count = len(built.params)
            step = Step(LIBRARY, section, part.inputs, part.outputs, "main", built.prepare, count)
        parts.steps.append(step)
    parts.steps = [
        Step(**{**vars(step), "about": segment.to_dict()})
        for step, segment in zip(parts.steps, report_segments(divided), strict=True)
    ]
    ends = {name for name, _, _ in source.inputs} | set(source.outputs)
    crossing = [name for part in ours for name in (*part.inputs, *part.outputs)]
    parts.between = [name for name in dict.fromkeys(crossing) if name not in ends]
    known: list[Layer | Weighted] = [*source.graph.layers(), *source.graph.weighted()]
    parts.layers += [
        report_elsewhere(layer, divided.elsewhere[layer.name])
        for layer in known
        if layer.name in divided.elsewhere
    ]
    return parts


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
