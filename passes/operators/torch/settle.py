"""Bring a graph to operators that are believed in, or say what stands in the way."""

import operator
from collections.abc import Callable

import torch
from torch import fx

from nmcompile.errors import ShapeError, UnsupportedOperatorError
from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.operators.table import NOT_THERE
from nmcompile.passes.operators.torch.arithmetic import (
    rewrite_bounds,
    rewrite_clamp,
    rewrite_elu,
    rewrite_power,
    rewrite_product,
    rewrite_scaled,
)
from nmcompile.passes.operators.torch.attention import rewrite_attention
from nmcompile.passes.operators.torch.empty import drop_empty
from nmcompile.passes.operators.torch.formulas import rewrite_by_formula
from nmcompile.passes.operators.torch.normalisation import rewrite_group_norm, rewrite_tracked_norm
from nmcompile.passes.operators.torch.patches import rewrite_patches
from nmcompile.passes.operators.torch.planar import rewrite_planar
from nmcompile.passes.operators.torch.pooling import (
    rewrite_adaptive_max,
    rewrite_average,
    rewrite_indexed_max,
)
from nmcompile.passes.operators.torch.positions import (
    rewrite_copy,
    rewrite_index,
    rewrite_select,
    rewrite_slice_scatter,
)
from nmcompile.passes.operators.torch.quantised import LIBRARY, rewrite_quantised
from nmcompile.passes.operators.torch.reductions import (
    rewrite_any,
    rewrite_count,
    rewrite_extreme,
    rewrite_spread,
    rewrite_unbiased,
)
from nmcompile.passes.operators.torch.resize import rewrite_upsample
from nmcompile.passes.operators.torch.table import TABLE

REWRITES: dict[str, Callable[[FxGraph, fx.Node], str | None]] = {
    "aten.add.Tensor": rewrite_scaled,
    "aten.sub.Tensor": rewrite_scaled,
    "aten.adaptive_max_pool1d.default": rewrite_adaptive_max,
    "aten.adaptive_max_pool2d.default": rewrite_adaptive_max,
    "aten.adaptive_max_pool3d.default": rewrite_adaptive_max,
    "aten.any.default": rewrite_any,
    "aten.any.dim": rewrite_any,
    "aten.any.dims": rewrite_any,
    "aten.avg_pool2d.default": rewrite_average,
    "aten.avg_pool3d.default": rewrite_average,
    "aten.clamp.Tensor": rewrite_bounds,
    "aten.cat.default": drop_empty,
    "aten.clamp.default": rewrite_clamp,
    "aten.clamp_max.Tensor": rewrite_bounds,
    "aten.clamp_max.default": rewrite_clamp,
    "aten.clamp_min.Tensor": rewrite_bounds,
    "aten.clamp_min.default": rewrite_clamp,
    "aten.conv1d.default": rewrite_planar,
    "aten.conv1d.padding": rewrite_planar,
    "aten.conv3d.default": rewrite_planar,
    "aten.conv3d.padding": rewrite_planar,
    "aten.conv_transpose1d.default": rewrite_planar,
    "aten.conv_transpose2d.input": rewrite_planar,
    "aten.conv_transpose3d.input": rewrite_planar,
    "aten.convolution.default": rewrite_planar,
    "aten.col2im.default": rewrite_patches,
    "aten.copy.default": rewrite_copy,
    "aten.elu.default": rewrite_elu,
    "aten.group_norm.default": rewrite_group_norm,
    "aten.index.Tensor": rewrite_index,
    "aten.max.dim": rewrite_extreme,
    "aten.max_pool2d_with_indices.default": rewrite_indexed_max,
    "aten.max_pool3d_with_indices.default": rewrite_indexed_max,
    "aten.min.dim": rewrite_extreme,
    "aten.mul.Scalar": rewrite_product,
    "aten.mul.Tensor": rewrite_product,
    "aten.im2col.default": rewrite_patches,
    "aten.instance_norm.default": rewrite_tracked_norm,
    "aten.pow.Scalar": rewrite_power,
    "aten.scaled_dot_product_attention.default": rewrite_attention,
    "aten.select.int": rewrite_select,
    "aten.selu.default": rewrite_elu,
    "aten.slice_scatter.default": rewrite_slice_scatter,
    "aten.std.dim": rewrite_unbiased,
    "aten.std_mean.correction": rewrite_spread,
    "aten.sum.default": rewrite_count,
    "aten.sum.dim_IntList": rewrite_count,
    "aten.var.dim": rewrite_unbiased,
    "aten.var_mean.correction": rewrite_spread,
    "aten.upsample_bicubic2d.vec": rewrite_upsample,
    "aten.upsample_bilinear2d.vec": rewrite_upsample,
    "aten.upsample_linear1d.vec": rewrite_upsample,
    "aten.upsample_nearest1d.vec": rewrite_upsample,
    "aten.upsample_nearest2d.vec": rewrite_upsample,
    "aten.upsample_nearest3d.vec": rewrite_upsample,
    "aten.upsample_trilinear3d.vec": rewrite_upsample,
    "aten._upsample_bicubic2d_aa.vec": rewrite_upsample,
    "aten._upsample_bilinear2d_aa.vec": rewrite_upsample,
    "aten._upsample_nearest_exact1d.vec": rewrite_upsample,
    "aten._upsample_nearest_exact2d.vec": rewrite_upsample,
    "aten._upsample_nearest_exact3d.vec": rewrite_upsample,
    **dict.fromkeys(
        (
            f"{LIBRARY}.{verb}_per_{form}"
            for verb in ("quantize", "dequantize")
            for form in ("tensor.tensor", "tensor.tensor2", "channel.default")
        ),
        rewrite_quantised,
    ),
}
"""By operator, what expresses it in others where it is not believed in as it is."""

ADVICE = (
    "express it with operators of docs/operators.md, or leave that part out of the exported model"
)


def settle(graph: FxGraph) -> None:
    """Rewrite what is not believed in, in place, until all of the graph is.

    Raises:
        UnsupportedOperatorError: an operator is neither believed in nor can be expressed in
            others; names the node, the operator, what was expected and what was found.
        ShapeError: an output has no elements.
    """
    while (found := _first_doubtful(graph)) is not None:
        node, doubtful = found
        reason = rewrite(graph, node)
        if reason is not None:
            also = f" ({reason})" if reason else ""
            raise UnsupportedOperatorError(
                f"the model cannot be compiled: {node.target} (node {node.name}): "
                f"{doubtful}{also}; {ADVICE}"
            )
    for index, value in enumerate(graph.outputs()):
        shape = graph.shape(value)
        if shape is not None and 0 in shape:
            raise ShapeError(
                f"output {index} has the shape {shape}; expected dimensions of at least 1: leave "
                "it out of the model"
            )


def rewrite(graph: FxGraph, node: fx.Node) -> str | None:
    """Express a node that is not believed in by others.

    Returns:
        None, or why that cannot be done, "" where there is nothing to say.
    """
    ours = REWRITES.get(str(node.target))
    reason = ours(graph, node) if ours is not None else ""
    if reason is None or rewrite_by_formula(graph, node, settle) is None:
        return None
    return reason


def doubt(graph: FxGraph, node: fx.Node) -> str | None:
    """Why a node is not believed in, as "expected ..., found ...", or None."""
    row = TABLE.get(str(node.target))
    if row is None:
        return NOT_THERE
    sources = node.all_input_nodes or [node]
    # What is no tensor, as a list of them, has no dtype.
    return row.doubt(graph, node, graph.dtype(sources[0]) or "")


def _first_doubtful(graph: FxGraph) -> tuple[fx.Node, str] | None:
    for node in graph.module.graph.find_nodes(op="call_module"):
        return node, "expected an operator, found a module"
    for node in graph.module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if _checks(node):
            continue
        if (reason := doubt(graph, node)) is not None:
            return node, reason
    return None


def _checks(node: fx.Node) -> bool:
    """Whether the node asserts something: nothing is computed from it."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and not target._schema.returns
