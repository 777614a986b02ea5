"""Which operators over integers are rewritten as operators over what these stand for.

Quantised models are then all of one form: real numbers, with a QuantizeLinear and DequantizeLinear
wherever they are rounded.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.integers.linear import (
    rewrite_conv,
    rewrite_gemm,
    rewrite_matmul,
)
from nmcompile.passes.operators.onnx.integers.moved import rewrite_clip, rewrite_moved
from nmcompile.passes.operators.onnx.integers.rewriting import (
    LATER,
    LATER_OPSET,
    PER_SLICE,
    IntegerRewriting,
)
from nmcompile.passes.operators.onnx.integers.simple import (
    POOLING,
    of_one,
    of_two,
    rewrite_concat,
    rewrite_standard,
)
from nmcompile.passes.operators.onnx.integers.sums import (
    rewrite_conv_integer,
    rewrite_dynamic,
    rewrite_matmul_integer,
)
from nmcompile.passes.operators.onnx.rewriting import DOMAIN, Form, form, key

FORMS: dict[str, Form] = {
    name: form(IntegerRewriting, rewrite)
    for name, rewrite in {
        "ConvInteger": rewrite_conv_integer,
        "DynamicQuantizeLinear": rewrite_dynamic,
        "MatMulInteger": rewrite_matmul_integer,
        "QLinearConv": rewrite_conv,
        "QLinearMatMul": rewrite_matmul,
        f"{DOMAIN}.DequantizeLinear": rewrite_standard,
        f"{DOMAIN}.QGemm": rewrite_gemm,
        f"{DOMAIN}.QLinearAdd": of_two("Add"),
        f"{DOMAIN}.QLinearAveragePool": of_one("AveragePool", *POOLING),
        f"{DOMAIN}.QLinearConcat": rewrite_concat,
        f"{DOMAIN}.QLinearGlobalAveragePool": of_one("GlobalAveragePool"),
        f"{DOMAIN}.QLinearLeakyRelu": of_one("LeakyRelu", "alpha"),
        f"{DOMAIN}.QLinearMul": of_two("Mul"),
        f"{DOMAIN}.QLinearSigmoid": of_one("Sigmoid"),
        f"{DOMAIN}.QuantizeLinear": rewrite_standard,
    }.items()
}
"""By operator, with its domain where that is not ONNX's own."""

_MOVED = ("Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_OVER_INTEGERS = dict.fromkeys(_MOVED, form(IntegerRewriting, rewrite_moved))
_OVER_INTEGERS["Clip"] = form(IntegerRewriting, rewrite_clip)


def opset_for(model: ir.Model) -> int:
    """The first operator set that has words for what a model's integers are rewritten as."""
    used = [node for node in model.graph if key(node) in FORMS]
    for node in used:
        if node.domain == DOMAIN and any(v is not None and v.dtype in LATER for v in node.inputs):
            return LATER_OPSET
    return PER_SLICE if used else 0


def rewrite_integers(graph: OnnxGraph) -> None:
    """Rewrite, in place, all operators over integers that can be.

    What cannot stays as it is: it is refused when the model is to be compiled.
    """
    before, changed = set(graph.model.graph), False
    for node in list(graph.model.graph):
        data = node.inputs[0] if node.inputs else None
        if node.graph is None or data is None:
            continue
        found = FORMS.get(key(node))
        if found is None and graph.dtype(data) in ("int8", "uint8"):
            found = _OVER_INTEGERS.get(key(node))
        if found is not None:
            changed |= found(graph, node) is None
    for node in graph.model.graph:
        # Inference has to say it again of new nodes: it leaves it open where they are wrong.
        for value in () if node in before else node.outputs:
            value.type = value.type if value.is_graph_output() else None
    if changed:
        ShapeInferencePass(strict_mode=False)(graph.model)
