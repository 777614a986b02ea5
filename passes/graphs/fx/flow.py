"""What aten operators do to elements: `Op.flow`, `uniform` and `parameters` of FX graphs.

An operator that is not listed here is opaque: nothing is claimed about it.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from nmcompile.passes.graphs.flow import OPAQUE, Flow, Uniform
from nmcompile.passes.graphs.fx.nodes import (
    DROPOUT,
    LAYER_NORM,
    LINEAR,
    RESHAPE,
    arguments_of,
    batch_norm_node,
    bias_node,
    is_identity,
    weight_node,
)
from nmcompile.passes.graphs.interface import OpKind, Parameter

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
# These work on the last two axes.
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
_REDUCE = {
    aten.mean.dim,
    aten.mean.default,
    aten.sum.dim_IntList,
    aten.sum.default,
    aten.amax.default,
    aten.amin.default,
}
# Of a channel that holds one number these make the same number.
_KEEPING = (_IMAGE - {aten.avg_pool2d.default}) | (
    _REDUCE - {aten.sum.dim_IntList, aten.sum.default}
)
_ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
    aten.where.self,
    aten.masked_fill.Scalar,
}
_SOFTMAX = {
    aten.softmax.int,
    aten.log_softmax.int,
    aten._softmax.default,
    aten._log_softmax.default,
}
_TURN = {aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default}
_CUT = {aten.select.int, aten.slice.Tensor}
_PRODUCT = LINEAR - {aten.linear.default, aten.addmm.default} | {aten.bmm.default}
# Their parts are picked by getitem.
_PARTS = {
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
}

# PT2E's operators, which are there once something has imported them, with one step for all.
_QUANTISED = {
    "quantized_decomposed.dequantize_per_tensor.default",
    "quantized_decomposed.quantize_per_tensor.default",
}

ShapeOf = Callable[[Any], tuple[int, ...] | None]


def channel_flow(node: fx.Node, kind: OpKind, shape: ShapeOf) -> Flow:
    """`Op.flow` of a node; `shape` is the graph's."""
    target = node.target
    if kind in ("batch_norm", "identity") or target in _POINTWISE or is_identity(node):
        return Flow("pointwise")
    if (target in DROPOUT and not node.args[2]) or str(target) in _QUANTISED:
        return Flow("pointwise")
    if target in _PARTS:
        return Flow("parts")
    if target in _ELEMENTWISE:
        return Flow("elementwise")
    if target in RESHAPE:
        return Flow("reshape")
    if target is operator.getitem:
        return _part(node, shape)
    if target in _PRODUCT:
        return Flow("product")
    if target is aten.embedding.default:
        return Flow("lookup")
    if target is aten.expand.default:
        return Flow("broadcast")
    if target is aten.scaled_dot_product_attention.default:
        given = arguments_of(node)
        plain = not given["dropout_p"] and not given["enable_gqa"]
        return Flow("attention") if plain else OPAQUE
    if target is aten.cat.default and any(0 in (shape(x) or ()) for x in node.all_input_nodes):
        return OPAQUE  # one of them may have no axes but its own
    source = next(iter(node.all_input_nodes), None)
    known = None if source is None else shape(source)
    return OPAQUE if known is None else _of_axes(node, known)


def _of_axes(node: fx.Node, known: tuple[int, ...]) -> Flow:
    """The flow of an operator that has axes among its arguments; `known` is its input's shape."""
    if _is_computed(node):
        return OPAQUE
    target, rank = node.target, len(known)
    if target in _IMAGE:
        return Flow("along", (2, 3)) if rank == 4 else OPAQUE
    if target in _PAD | _REDUCE | _SOFTMAX | LAYER_NORM | _TURN | _CUT:
        given = arguments_of(node)
    elif target is aten.cat.default:
        return Flow("concat", (int(arguments_of(node)["dim"]) % rank,))
    else:
        return OPAQUE
    if target in _PAD:
        # Two numbers per axis, from the last axis on.
        pads = given["pad"]
        wide = [rank - 1 - i for i in range(len(pads) // 2) if any(pads[2 * i : 2 * i + 2])]
        return Flow("along", tuple(sorted(wide)))
    if target in _REDUCE:
        axes = given.get("dim") or range(rank)
        return Flow("reduce", tuple(sorted({int(axis) % rank for axis in axes})))
    if target in _SOFTMAX:
        return Flow("symmetric", (int(given["dim"]) % rank,))
    if target in LAYER_NORM:
        return Flow("symmetric", tuple(range(rank - len(given["normalized_shape"]), rank)))
    if target in _TURN:
        order = list(range(rank))[::-1]
        if target is aten.permute.default:
            order = [int(axis) % rank for axis in given["dims"]]
        elif target is aten.transpose.int:
            order.reverse()
            one, two = (int(given[name]) % rank for name in ("dim0", "dim1"))
            order[one], order[two] = order[two], order[one]
        return Flow("transpose", tuple(order))
    axis = int(given["dim"]) % rank
    if target is aten.select.int:
        places: Any = slice(given["index"] % known[axis], given["index"] % known[axis] + 1)
    else:
        places = slice(given["start"], given["end"], given["step"])
    start, stop, step = places.indices(known[axis])
    return Flow("slice", (axis,), ((start, stop),)) if step == 1 else OPAQUE


def _part(node: fx.Node, shape: ShapeOf) -> Flow:
    """One of the parts that an operator cuts its input into."""
    cut, index = cast(fx.Node, node.args[0]), cast(int, node.args[1])
    known = shape(cut.args[0]) if cut.target in _PARTS else None
    if known is None or _is_computed(cut):
        return OPAQUE
    given = arguments_of(cut)
    axis = int(given["dim"]) % len(known)
    if cut.target is aten.split_with_sizes.default:
        sizes = [int(size) for size in given["split_sizes"]]
        start = sum(sizes[:index])
        return Flow("slice", (axis,), ((start, start + sizes[index]),))
    size = 1 if cut.target is aten.unbind.int else int(given["split_size"])
    return Flow("slice", (axis,), ((size * index, min(size * (index + 1), known[axis])),))


def _is_computed(node: fx.Node) -> bool:
    """Whether an axis, a place or a size is a number that the model computes."""
    return any(isinstance(source.meta.get("val"), torch.SymInt) for source in node.all_input_nodes)


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
