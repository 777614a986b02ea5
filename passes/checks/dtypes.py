"""Refuse precisions that no kernel computes in."""

from collections.abc import Mapping

from nmcompile.errors import UnsupportedOperatorError, WeightError
from nmcompile.passes.graphs.interface import Graph

_ADVICE = (
    "convert the model to float32 (in torch, model.float() before it is exported) and compile it "
    "again"
)


def check_dtypes(graph: Graph, inputs: Mapping[str, str]) -> None:
    """Check that the convolutions and matrix products of a folded model compute in float32.

    Weights that are only stored in another precision have been converted by folding. Folding
    itself takes every precision: this is for models that are to be compiled.

    Args:
        graph: the model.
        inputs: numpy dtype name of every input, by name.

    Raises:
        UnsupportedOperatorError: an input or output is float64, which no kernel reads or writes;
            names it.
        WeightError: a layer computes in float64, float16 or bfloat16; names it.
    """
    for name, dtype in inputs.items():
        if dtype == "float64":
            raise UnsupportedOperatorError(f"input {name} is float64; expected float32: {_ADVICE}")
    for op in graph.ops():
        if op.weight is None or op.weight.dtype.kind != "f":
            continue
        # The array does not tell: bfloat16 is widened where numpy sees it.
        found = graph.dtype(op.output) or graph.dtype(op.inputs[0]) or op.weight.dtype.name
        if found != "float32":
            raise WeightError(
                f"layer {op.name}: its weight is {found}; expected float32, the precision of all "
                f"kernels: {_ADVICE}"
            )
    for index, value in enumerate(graph.outputs()):
        if graph.dtype(value) == "float64":
            raise UnsupportedOperatorError(
                f"output {index} is float64; expected float32: {_ADVICE}"
            )
