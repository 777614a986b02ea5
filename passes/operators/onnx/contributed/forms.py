"""Which of onnxruntime's operators are rewritten, and where that happens."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.contributed.heads import (
    rewrite_multi_head,
    rewrite_packed,
    rewrite_rotary,
)
from nmcompile.passes.operators.onnx.contributed.simple import (
    rewrite_fast_gelu,
    rewrite_gelu,
    rewrite_quick_gelu,
    rewrite_rms_norm,
    rewrite_skip_norm,
    rewrite_skip_rms_norm,
)
from nmcompile.passes.operators.onnx.contributed.writing import Writing
from nmcompile.passes.operators.onnx.rewriting import DOMAIN, Form, form, key

TRANSFORMERS: dict[str, Form] = {
    f"{DOMAIN}.{name}": form(Writing, rewrite)
    for name, rewrite in {
        "Attention": rewrite_packed,
        "BiasGelu": rewrite_gelu,
        "FastGelu": rewrite_fast_gelu,
        "Gelu": rewrite_gelu,
        "MultiHeadAttention": rewrite_multi_head,
        "QuickGelu": rewrite_quick_gelu,
        "RotaryEmbedding": rewrite_rotary,
        "SimplifiedLayerNormalization": rewrite_rms_norm,
        "SkipLayerNormalization": rewrite_skip_norm,
        "SkipSimplifiedLayerNormalization": rewrite_skip_rms_norm,
    }.items()
}
"""By operator, with its domain."""


def adopt(model: ir.Model) -> None:
    """Give onnxruntime's operators that it writes under ONNX's name its own domain, in place."""
    version = model.graph.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        ours = f"{DOMAIN}.{node.op_type}" in TRANSFORMERS
        known = onnx.defs.has(str(node.op_type), max_inclusive_version=max(version, 1))
        if node.domain == "" and ours and not known:
            node.domain = DOMAIN
            model.graph.opset_imports.setdefault(DOMAIN, 1)


def rewrite_transformers(graph: OnnxGraph) -> None:
    """Rewrite, in place, all of these operators that can be.

    What cannot stays as it is: it is refused when the model is to be compiled.
    """
    while True:
        changed = False
        for node in list(graph.model.graph):
            found = TRANSFORMERS.get(key(node)) if node.graph is not None else None
            changed |= found is not None and found(graph, node) is None
        if not changed:
            return
        # ONNX knows no shapes behind what is not its own: they come out one operator at a time.
        ShapeInferencePass(strict_mode=False)(graph.model)
