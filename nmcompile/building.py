"""A folded model that is all ours, lowered and compiled to one library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    from nmcompile.passes.lowering.calls import FinishedCall
    from nmcompile.passes.lowering.library import Maker
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
    calls: kernel calls in execution order.
    flow: for each call what it reads, writes and makes.
    leftovers: operators that take TVM's own lowering, with their number.
    outputs: what the entry function returns.
    tuning: what measuring gained.
    notes: for the user, one sentence each.
    """

    library: bytes
    params: Mapping[str, npt.NDArray[np.generic]]
    prepare: str
    layers: tuple[LayerReport, ...]
    calls: tuple[runtime.Call, ...]
    flow: tuple[FinishedCall, ...]
    leftovers: Mapping[str, int]
    outputs: tuple[runtime.TensorSpec, ...]
    tuning: tuple[TunedLayer, ...]
    notes: tuple[str, ...]


def build(
    source: SourceModel,
    target: Target,
    precision: str | None,
    dense: bool,
    tuning: OpenTuning | None,
    maker: Maker | None,
    stage: Stages,
    recorded: RecordedCode | None = None,
) -> Built:
    """Lower and compile a folded model.

    Args:
        source: the model.
        target: what for.
        precision: as in `nmcompile.compile`.
        dense: whether zeros are ignored.
        tuning: measurements to choose by, and to add to.
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
    from nmcompile.kernels.catalog import choose
    from nmcompile.passes.lowering.calls import finished_calls
    from nmcompile.passes.lowering.fallback import output_types
    from nmcompile.passes.lowering.kernels import (
        PREPARE,
        Chooser,
        detect_group,
        find_problems,
        lower_kernels,
    )
    from nmcompile.passes.lowering.match import Group
    from nmcompile.tuning.tuner import Layer

    stage("importing into TVM")
    backend = backend_of(target, precision)
    module = backend.prepare(source.to_relax())
    try:
        types = output_types(module)
    except TypeError as error:  # an open shape is None or symbolic
        raise UnsupportedOperatorError(
            f"{source.title}: expected outputs of fixed shapes, found one whose shape depends on "
            "the values of the input, as behind NonZero; leave that part out of the exported model"
        ) from error
    names = LayerNames(source.graph.computed())

    def as_dense(group: Group) -> Detection:
        return Detection(Dense(), (Dense(),), detect_group(group).density)

    def as_recorded(group: Group) -> Detection:
        assert recorded is not None and group.weight is not None
        return recorded.detect(layers_of.of(group), group.weight)

    pattern_of = as_dense if dense else detect_group
    chooser: Chooser = choose
    if recorded is not None:
        layers_of = LayerNames(source.graph.computed())
        pattern_of, chooser = as_recorded, recorded.choose
    if tuning is not None:
        chooser = tuning.database.choose
        if tuning.measures:
            named = LayerNames(source.graph.computed())
            found = find_problems(module, pattern_of, backend.lowering).problems
            unmeasured = [Layer(named.of(group), group.op, problem) for group, problem in found]
            tuning.fill(unmeasured, target.name, stage)
    stage(choosing := "choosing kernels")
    lowered = lower_kernels(
        module,
        target.name,
        pattern_of,
        lambda done, total: stage(choosing, done, total),
        chooser,
        backend.lowering,
    )
    stage(finishing := "generating code" if maker else "lowering the rest")
    final = backend.finish(lowered.module)
    owners = [names.of(call.group) for call in lowered.calls]
    flow = finished_calls(final, [name for name, _, _ in source.inputs], source.outputs)
    calls = [
        runtime.Call(call.symbol, call.symbol if call.number is None else owners[call.number])
        for call in flow
    ]
    if recorded is not None:
        recorded.note_params(lowered.params, owners)
    library = b""
    if maker is not None:
        library = backend.build(final, maker, lambda done, total: stage(finishing, done, total))
    chosen = [
        (owner, call.problem, call.choice)
        for owner, call in zip(owners, lowered.calls, strict=True)
    ]
    layers = report_choices(source.graph, chosen)
    outputs = tuple(
        runtime.TensorSpec(name, shape, dtype)
        for name, (shape, dtype) in zip(source.outputs, types, strict=True)
    )
    tuned = []
    for owner, call in zip(owners, lowered.calls, strict=True):
        entry = tuning.database.find(call.problem, target.name) if tuning is not None else None
        if entry is not None:
            tuned.append(TunedLayer(owner, entry.kernel, entry.default_ms, entry.ms))
    return Built(
        library,
        lowered.params,
        PREPARE if lowered.prepares else "",
        layers,
        tuple(calls),
        flow,
        Counter(lowered.leftovers),
        outputs,
        tuple(tuned),
        (
            *scattered_notes(layers),
            *real_notes(source, lowered.real),
            *backend.note(zip(owners, lowered.calls, strict=True)),
            *(tuning.notes if tuning is not None else ()),
        ),
    )
