"""What aten operators do to channels: `Op.flow`, `uniform` and `parameters` of FX graphs.

An operator that is not listed here is opaque: nothing is claimed about it.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import (
    DROPOUT,
    RESHAPE,
    arguments_of,
    batch_norm_node,
    bias_node,
    is_identity,
    weight_node,
)
from nmcompile.passes.graphs.interface import ChannelFlow, OpKind, Parameter, Uniform

aten = torch.ops.aten

_POINTWISE = {
    aten.relu.default,
    aten.relu6.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.log_sigmoid.default,
    aten.tanh.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.abs.default,
    aten.neg.default,
    aten.exp.default,
    aten.log.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.square.default,
    aten.reciprocal.default,
    aten.erf.default,
    aten.pow.Tensor_Scalar,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.mul.Scalar,
    aten.div.Scalar,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.prelu.default,
}
# These work on the last two axes, which are behind the channel axis for rank 4 only.
_IMAGE = {
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.default,
    aten.upsample_bicubic2d.vec,
    aten.reflection_pad2d.default,
    aten.replication_pad2d.default,
}
_PAD = {aten.pad.default, aten.constant_pad_nd.default}
_REDUCE = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default}
# Of a channel that holds one number these make the same number.
_KEEPING = (_IMAGE - {aten.avg_pool2d.default}) | (_REDUCE - {aten.sum.dim_IntList})
_ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
}

# PT2E's operators, which are there once something has imported them, with one step for all.
_QUANTISED = {
    "quantized_decomposed.dequantize_per_tensor.default",
    "quantized_decomposed.quantize_per_tensor.default",
}

ShapeOf = Callable[[Any], tuple[int, ...] | None]


def channel_flow(node: fx.Node, kind: OpKind, shape: ShapeOf) -> ChannelFlow:
    """`Op.flow` of a node; `shape` is the graph's."""
    target = node.target
    if kind in ("batch_norm", "identity") or target in _POINTWISE or is_identity(node):
        return "channelwise"
    if (target in DROPOUT and not node.args[2]) or str(target) in _QUANTISED:
        return "channelwise"
    if target in _ELEMENTWISE:
        return "elementwise"
    if target in RESHAPE:
        return "reshape"
    if target is aten.cat.default:
        axis, parts = arguments_of(node)["dim"], node.args[0]
        assert isinstance(parts, (list, tuple))
        # Channels are counted over the inputs, of which each node is listed once.
        return "concat" if axis == 1 and len(set(parts)) == len(parts) else "opaque"
    source = node.args[0] if node.args else None
    rank = len(shape(source) or ()) if isinstance(source, fx.Node) else 0
    if target in _IMAGE:
        return "channelwise" if rank == 4 else "opaque"
    if target in _PAD:
        # Two numbers per axis, from the last axis on.
        return "channelwise" if len(arguments_of(node)["pad"]) <= 2 * (rank - 2) else "opaque"
    if target in _REDUCE:
        axes = arguments_of(node)["dim"] or range(rank)
        return "channelwise" if rank and {0, 1}.isdisjoint(a % rank for a in axes) else "opaque"
    return "opaque"


def uniform_channels(node: fx.Node) -> Uniform:
    """`Op.uniform` of a channelwise node."""
    target = node.target
    if target in _KEEPING:
        return "kept"
    if target is aten.avg_pool2d.default:
        arguments = arguments_of(node)
        counted = any(arguments["padding"]) and arguments["count_include_pad"]
        return "zero" if counted or arguments["divisor_override"] is not None else "kept"
    if target in _PAD:
        arguments = arguments_of(node)
        if arguments.get("mode", "constant") != "constant":
            return "kept"
        return "unknown" if arguments["value"] else "zero"
    return "zero" if target in _REDUCE else "pointwise"


def is_product(node: fx.Node) -> bool:
    """`Op.product` of a node."""
    return node.target is aten.mul.Tensor


def channel_parameters(node: fx.Node, kind: OpKind) -> tuple[Parameter, ...]:
    """`Op.parameters` of a node."""
    if kind in ("conv", "linear"):
        transposed = kind == "linear" and node.target is not aten.linear.default
        weight = Parameter(weight_node(node), *((1, 0) if transposed else (0, 1)))
        bias = bias_node(node)
        return (weight,) if bias is None else (weight, Parameter(bias, 0))
    if kind == "batch_norm":
        arguments = arguments_of(batch_norm_node(node))
        names = ("weight", "bias", "running_mean", "running_var")
        return tuple(Parameter(arguments[n], 0) for n in names if arguments[n] is not None)
    if node.target is aten.prelu.default:
        return (Parameter(cast(fx.Node, node.args[1]), 0),)
    return ()
