"""The order of the folding passes, and the driver that runs them."""

from collections.abc import Callable, Sequence

from nmcompile.errors import ModelError, NmcompileError
from nmcompile.passes.fold_batchnorm import FoldBatchNorm
from nmcompile.passes.fold_layernorm import FoldLayerNorm
from nmcompile.passes.fold_parallel_branches import FoldParallelBranches
from nmcompile.passes.graphs.interface import Graph, Note, Pass, PassResult
from nmcompile.passes.materialize_weights import MaterializeWeights

FOLD_PIPELINE: tuple[Pass, ...] = (
    MaterializeWeights(),
    FoldBatchNorm(),
    FoldParallelBranches(),
    FoldLayerNorm(),
)
"""From training form to plain layers. Constants first, since the others need weights they can read;
batch norms before branches, so that what is summed are bare convolutions."""


def run_pipeline(
    graph: Graph,
    passes: Sequence[Pass] = FOLD_PIPELINE,
    *,
    on_pass: Callable[[str], None] | None = None,
    verify: bool = False,
) -> PassResult:
    """Run passes in order on `graph`, in place.

    Args:
        graph: the model.
        passes: what to run.
        on_pass: told the name of every pass before it runs, for progress displays.
        verify: run `check_graph` after every pass.

    Returns:
        The graph, whether any pass changed it, and the notes of all passes that still hold.

    Raises:
        NmcompileError: what a pass raised on purpose, with a note on the pipeline's position.
        ModelError: a pass failed otherwise; says which one, and which had run before.
    """
    notes: list[Note] = []
    modified = False
    ran: list[str] = []
    for step in passes:
        if on_pass is not None:
            on_pass(step.name)
        where = f"pass {step.name}, after {', '.join(ran) or 'no other pass'}"
        try:
            result = step.call(graph)
            if verify:
                check_graph(graph)
        except NmcompileError as error:
            error.add_note(f"raised by {where}")
            raise
        except Exception as error:
            raise ModelError(
                f"{where}, failed on this model: {type(error).__name__}: {error}; this is a "
                "defect of nmcompile: please report it with the model"
            ) from error
        graph = result.graph
        modified |= result.modified
        notes.extend(result.notes)
        ran.append(step.name)
    # A later pass may have found a way: what is gone was not left as it is.
    names = {op.name for op in graph.ops()}
    kept = tuple(note for note in notes if not note.left or note.layer in names)
    return PassResult(graph, modified, kept)


def check_graph(graph: Graph) -> None:
    """Check what must hold after every pass.

    Operators come after what they read, layer names are unique, conv and linear weights fit their
    inputs, every recorded output shape is what the operator computes, and the framework's own
    checker is content.

    Raises:
        AssertionError: with the first thing that is wrong.
    """
    ops = graph.ops()
    made = {op.output: position for position, op in enumerate(ops)}
    for position, op in enumerate(ops):
        for value in op.inputs:
            assert made.get(value, -1) < position, f"{op.where} reads what comes later"
    names = [layer.name for layer in graph.layers()]
    assert len(names) == len(set(names)), "layer names are not unique"
    for layer in graph.layers():
        channels = layer.weight.shape[1] * layer.groups
        if layer.input_shape is not None:
            found = layer.input_shape[1 if layer.op == "conv2d" else -1]
            assert found == channels, f"{layer.name} reads {found} channels, expects {channels}"
        if layer.bias is not None:
            assert layer.bias.shape == layer.weight.shape[:1], f"{layer.name}: bias does not fit"
    graph.check()
