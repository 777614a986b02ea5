"""Reading single nodes of aten graphs: arguments by name, geometry, purity, module paths."""

import operator
from typing import Any, cast

import torch
from torch import fx

from nmcompile.passes.graphs.interface import Array, ConvAttrs, weight_owner

aten = torch.ops.aten

NAME = "nmcompile_name"
"""The key of node metadata under which a layer keeps its name."""

CONV = {aten.conv2d.default, aten.conv2d.padding, aten.convolution.default}
LINEAR = {aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default}
NATIVE_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
VIEW = {aten.view.default, aten._unsafe_view.default}
SIZED = VIEW | {aten.reshape.default}
RESHAPE = SIZED | {
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
_IDENTITY = {
    aten.alias.default,
    aten.clone.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
}
LAYER_NORM = {aten.layer_norm.default, aten.rms_norm.default}
DROPOUT = {aten.dropout.default, aten.dropout_.default}


def as_numpy(tensor: torch.Tensor) -> Array:
    """A view where numpy has the dtype; bfloat16 is widened to float32."""
    # A negative or conjugate view is a bit beside the memory.
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Every argument of an aten call by its schema name, defaults filled in, in order."""
    schema = cast(Any, node.target)._schema.arguments
    return {
        entry.name: node.args[i]
        if i < len(node.args)
        else node.kwargs.get(entry.name, entry.default_value)
        for i, entry in enumerate(schema)
    }


def is_identity(node: fx.Node) -> bool:
    """Whether the node hands its input on, layout included: later nodes may depend on strides."""
    kept = node.kwargs.get("memory_format") in (None, torch.preserve_format)
    return node.target in _IDENTITY and kept


def weight_node(node: fx.Node) -> fx.Node:
    """What a convolution or matrix product multiplies its input with."""
    arguments = arguments_of(node)
    names = ("weight", "mat2", "other")
    return cast(fx.Node, next(arguments[name] for name in names if name in arguments))


def bias_node(node: fx.Node) -> fx.Node | None:
    """What a convolution or matrix product adds, if anything."""
    name = "self" if node.target is aten.addmm.default else "bias"
    return cast("fx.Node | None", arguments_of(node).get(name))


def data_node(node: fx.Node) -> fx.Node:
    """The activation that a convolution or matrix product reads."""
    return cast(fx.Node, node.args[1 if node.target is aten.addmm.default else 0])


def batch_norm_node(node: fx.Node) -> Any:
    """The batch norm that this node is, or takes the result of; None for any other node."""
    if node.target is aten.batch_norm.default:
        return node
    source = node.args[0]
    native = isinstance(source, fx.Node) and source.target is NATIVE_BATCH_NORM
    return source if native else None


def conv_attrs(node: fx.Node, weight: Array | None) -> ConvAttrs | None:
    """The geometry, or None unless this is a plain two-dimensional convolution."""
    arguments = arguments_of(node)
    if weight is None or weight.ndim != 4 or arguments.get("transposed", False):
        return None
    stride, dilation = _pair(arguments["stride"]), _pair(arguments["dilation"])
    padding = arguments["padding"]
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        top, left = [span // 2 if padding == "same" else 0 for span in spans]
        bottom, right = [span - span // 2 if padding == "same" else 0 for span in spans]
    else:
        top, left = bottom, right = _pair(padding)
    return ConvAttrs(stride, (top, left, bottom, right), dilation, arguments["groups"])


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def is_pure(node: fx.Node) -> bool:
    """Whether running the node now gives what running it in the model would give."""
    if node.target is operator.getitem:
        return True
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    return not random and not target._schema.is_mutable and bool(target._schema.returns)


def layer_name(node: fx.Node) -> str:
    """The module path of the weight, through whatever computes it; else that of the caller."""
    layer, seen = [weight_node(node)], set[fx.Node]()
    while layer:
        for source in layer:
            owner = weight_owner(str(source.target)) if source.op == "get_attr" else ""
            if owner:
                return owner
        seen.update(layer)
        following = [n for source in layer for n in source.all_input_nodes if n not in seen]
        layer = list(dict.fromkeys(following))
    return module_path(node) or node.name


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""
