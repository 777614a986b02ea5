"""A folded model that is all ours, lowered and compiled to one library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nmcompile import runtime
from nmcompile.errors import UnsupportedOperatorError
from nmcompile.frontends import SourceModel
from nmcompile.layer_names import LayerNames
from nmcompile.progress import Stages
from nmcompile.reports import LayerReport, real_notes, report_choices, scattered_notes
from nmcompile.sparsity import Dense, Detection
from nmcompile.targets import Target

if TYPE_CHECKING:
    from nmcompile.backends import Backend
    from nmcompile.kernels.problem import Problem
    from nmcompile.passes.lowering.calls import FinishedCall
    from nmcompile.passes.lowering.kernels import LoweredModule, PatternOf
    from nmcompile.passes.lowering.library import Maker
    from nmcompile.passes.lowering.matching.match import Group
    from nmcompile.passes.lowering.variants import Joined
    from nmcompile.recorded import RecordedCode
    from nmcompile.tuning.setup import OpenTuning


@dataclass(frozen=True)
class TunedLayer:
    """Milliseconds of one layer: as the analytical model lowers it, and as measured best.

    Geometric means of the time on one thread and on all cores of the machine that tuned, or times
    on its GPU.
    """

    layer: str
    kernel: str
    default_ms: float
    ms: float


@dataclass(frozen=True, eq=False)
class Built:
    """A model that is one library.

    library: b"" where none was asked for.
    params: the weights, in the order in which its entry function takes them.
    prepare: its function for weights, or "".
    layers: as they were lowered.
    flow: for each call of the first shape what it reads, writes and makes.
    leftovers: operators that take TVM's own lowering, with their number.
    tuning: what measuring gained.
    notes: for the user, one sentence each.
    variants: the model for each shape; the other fields tell of the first.
    batched: as in `runtime.Manifest`.
    together: why a batch that is none of these shapes is not run in parts of it, or "".
    """

    library: bytes
    params: Mapping[str, npt.NDArray[np.generic]]
    prepare: str
    layers: tuple[LayerReport, ...]
    flow: tuple[FinishedCall, ...]
    leftovers: Mapping[str, int]
    tuning: tuple[TunedLayer, ...]
    notes: tuple[str, ...]
    variants: tuple[runtime.Variant, ...]
    batched: tuple[str, ...]
    together: str


def build(
    sources: Sequence[SourceModel],
    target: Target,
    precision: str | None,
    dense: bool,
    tuning: OpenTuning | None,
    maker: Maker | None,
    stage: Stages,
    recorded: RecordedCode | None = None,
) -> Built:
    """Lower and compile a folded model for one shape or several, to one library over its weights.

    Args:
        sources: the model for each of its shapes.
        target: what for.
        precision: as in `nmcompile.compile`.
        dense: whether zeros are ignored.
        tuning: measurements to choose by, and to add to; layers of all shapes are measured.
        maker: of libraries for CPUs; None where no machine code is wanted, which takes most of the
            time.
        stage: told what is going on.
        recorded: the code that is there, if all that is wanted is what it reads of the weights.

    Raises:
        UnsupportedOperatorError: an operator cannot be lowered.
        ModelError: the model computes in another precision than float32.
        DeviceError: measuring fails.
    """
    from nmcompile.backends import backend_of
    from nmcompile.passes.lowering.calls import Entry, finished_calls
    from nmcompile.passes.lowering.images.apart import batched_inputs
    from nmcompile.passes.lowering.kernels import Chooser, find_problems, lower_kernels
    from nmcompile.passes.lowering.prepare import PREPARE
    from nmcompile.passes.lowering.sharing import Counted, Ranking, SharedChooser
    from nmcompile.passes.lowering.variants import Joined, join_variants
    from nmcompile.tuning.tuner import Layer

    stage("importing into TVM")
    backend = backend_of(target, precision)
    imported = [_Imported.of(source, backend) for source in sources]
    source = sources[0]

    def pattern_of(each: _Imported) -> PatternOf:
        return _pattern_of(each.source, dense, recorded)

    def problems_of(each: _Imported) -> Sequence[tuple[Group, Problem]]:
        return find_problems(each.module, pattern_of(each), backend.lowering).problems

    ranking: Ranking = Counted() if tuning is None else tuning.database
    if tuning is not None and tuning.measures:
        unmeasured = []
        for each in imported:
            named = LayerNames(each.source.graph.computed())
            unmeasured += [
                Layer(named.of(group), group.op, problem) for group, problem in problems_of(each)
            ]
        tuning.fill(unmeasured, target.name, stage)
    stage(choosing := "choosing kernels")
    chooser: Chooser = ranking.choose
    if len(sources) > 1:
        every = [found for each in imported for found in problems_of(each)]
        problems = [(group.op, problem) for group, problem in every]
        chooser = SharedChooser(target.name, problems, ranking)
    if recorded is not None:
        chooser = recorded.chooser(chooser)
    lowered = [
        lower_kernels(
            each.module,
            target.name,
            pattern_of(each),
            lambda done, total: stage(choosing, done, total),
            chooser,
            backend.lowering,
        )
        for each in imported
    ]
    stage(finishing := "generating code" if maker else "lowering the rest")
    joined = (
        join_variants(lowered)
        if len(lowered) > 1
        else Joined(lowered[0].module, (Entry(),), lowered[0].params, ((),), lowered[0].prepares)
    )
    final = backend.finish(joined.module)
    finished = []
    for model, one, entry in zip(sources, lowered, joined.entries, strict=True):
        names = LayerNames(model.graph.computed())
        owners = [names.of(call.group) for call in one.calls]
        inputs = [name for name, _, _ in model.inputs]
        flow = finished_calls(final, inputs, model.outputs, entry)
        finished.append(_Finished(one, owners, flow))
    first = finished[0]
    if recorded is not None:
        recorded.note_params(joined.params, [each.owners for each in finished])
    library = b""
    if maker is not None:
        library = backend.build(final, maker, lambda done, total: stage(finishing, done, total))
    calls = list(zip(first.owners, first.lowered.calls, strict=True))
    layers = report_choices(
        source.graph, [(owner, call.problem, call.choice) for owner, call in calls]
    )
    tuned, others = _tuned(finished, tuning, target)
    batched, why = (
        batched_inputs(
            [{name: shape for name, shape, _ in model.inputs} for model in sources],
            [each.simple for each in imported],
        )
        if len(sources) > 1
        else ((), "")
    )
    return Built(
        library,
        joined.params,
        PREPARE if joined.prepares else "",
        layers,
        first.flow,
        Counter(first.lowered.leftovers),
        tuned,
        (
            *scattered_notes(layers),
            *real_notes(source, first.lowered.real),
            *backend.note(calls),
            *(tuning.notes if tuning is not None else ()),
            *(
                [f"not the measured best, so that all shapes read one weight: {', '.join(others)}"]
                if others and len(sources) > 1
                else ()
            ),
        ),
        _variants(imported, finished, joined),
        batched,
        why,
    )


@dataclass(frozen=True, eq=False)
class _Imported:
    """A model for one shape, as its kernels are chosen in it.

    simple: in Relax, as the model has it. module: the same, arranged for kernels.
    types: shape and dtype of each output.
    """

    source: SourceModel
    simple: Any
    module: Any
    types: Sequence[tuple[tuple[int, ...], str]]

    @classmethod
    def of(cls, source: SourceModel, backend: Backend) -> _Imported:
        """Import a model into TVM."""
        from nmcompile.passes.lowering.fallback import output_types

        simple = backend.simplify(source.to_relax())
        module = backend.arrange(simple)
        try:
            return cls(source, simple, module, output_types(module))
        except TypeError as error:  # an open shape is None or symbolic
            raise UnsupportedOperatorError(
                f"{source.title}: expected outputs of fixed shapes, found one whose shape depends "
                "on the values of the input, as behind NonZero; leave that part out of the "
                "exported model"
            ) from error

    @property
    def outputs(self) -> tuple[runtime.TensorSpec, ...]:
        """Of the model."""
        return tuple(
            runtime.TensorSpec(name, shape, dtype)
            for name, (shape, dtype) in zip(self.source.outputs, self.types, strict=True)
        )


@dataclass(frozen=True, eq=False)
class _Finished:
    """The calls of a model for one shape.

    owners: the layer of each kernel call of ours. flow: of all calls, in execution order.
    """

    lowered: LoweredModule
    owners: Sequence[str]
    flow: tuple[FinishedCall, ...]

    @property
    def calls(self) -> tuple[runtime.Call, ...]:
        """As profiles name them."""
        return tuple(
            runtime.Call(
                call.symbol, call.symbol if call.number is None else self.owners[call.number]
            )
            for call in self.flow
        )


def _pattern_of(source: SourceModel, dense: bool, recorded: RecordedCode | None) -> PatternOf:
    """The pattern of each weight of a model; layers with equal weights are asked for in order."""
    from nmcompile.passes.lowering.kernels import detect_group

    names = LayerNames(source.graph.computed()) if recorded is not None else None

    def pattern_of(group: Group) -> Detection:
        if recorded is not None and names is not None:
            assert group.weight is not None
            return recorded.detect(names.of(group), group.weight)
        found = detect_group(group)
        return Detection(Dense(), (Dense(),), found.density) if dense else found

    return pattern_of


def _tuned(
    finished: Sequence[_Finished], tuning: OpenTuning | None, target: Target
) -> tuple[tuple[TunedLayer, ...], list[str]]:
    """What measuring gained in the first shape, and the layers that miss their best in any."""
    found, others = [], dict[str, None]()
    for index, each in enumerate(finished):
        for owner, call in zip(each.owners, each.lowered.calls, strict=True):
            entry = tuning.database.find(call.problem, target.name) if tuning is not None else None
            if entry is None:
                continue
            if not entry.is_of(call.choice):
                others[owner] = None
            elif index == 0:
                found.append(TunedLayer(owner, entry.kernel, entry.default_ms, entry.ms))
    return tuple(found), list(others)


def _variants(
    imported: Sequence[_Imported], finished: Sequence[_Finished], joined: Joined
) -> tuple[runtime.Variant, ...]:
    return tuple(
        runtime.Variant(
            entry.main,
            tuple(runtime.TensorSpec(*spec) for spec in each.source.inputs),
            each.outputs,
            weights,
            one.calls,
        )
        for each, one, entry, weights in zip(
            imported, finished, joined.entries, joined.weights, strict=True
        )
    )
