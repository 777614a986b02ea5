"""Find convolution, linear and pooling operators in a Relax function, with what fuses behind them.

A group starts at an operator with constant weights and grows along its only user:

1. a per-channel constant added: the bias;
2. a tensor of the same shape added, once: the residual;
3. an activation, which ends the group: relu, clip (also as minimum and maximum), sigmoid, silu,
   hard-sigmoid, hard-swish, gelu and its form with a tangent, in the spellings that torch and ONNX
   exports use.

Behind a group norm there is only the last. Zero padding in front of a convolution becomes part of
it, and so do reshapes around a matrix product that join rows and part them again. Values with other
users are never absorbed, so nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from nmcompile.kernels.catalog import OpKind
from nmcompile.kernels.problem import Spec
from nmcompile.kernels.spec import (
    Activation,
    Attention,
    Conv2d,
    Elementwise,
    Epilogue,
    GlobalAverage,
    GroupNorm,
    LayerNorm,
    Linear,
    Pool2d,
    Positions,
    Product,
    Resample,
    Softmax,
)
from nmcompile.passes.lowering.matching.activations import ActivationMatcher
from nmcompile.passes.lowering.matching.attention import AttentionMatcher
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.matching.products import ProductMatcher
from nmcompile.passes.lowering.matching.recurrent import NAME as RECURRENT
from nmcompile.passes.lowering.matching.recurrent import read_call
from nmcompile.passes.lowering.matching.resampling import ResamplingMatcher
from nmcompile.passes.lowering.matching.rowwise import RowwiseMatcher
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, operator_name, shape_of

FloatArray = npt.NDArray[np.float32]


_KINDS: dict[type[Spec], OpKind] = {
    Attention: "attention",
    GroupNorm: "group_norm",
    LayerNorm: "layer_norm",
    Positions: "positions",
    Product: "product",
    Resample: "resample",
    Softmax: "softmax",
}
MAX_WINDOW = 256  # taps; the pooling kernel writes all of them out


@dataclass(eq=False)
class Group:
    """One operator and what is fused into it.

    `members` are the variables whose bindings the group replaces; the last one, `out`, keeps its
    place in the function.
    """

    op: OpKind
    spec: Spec
    x: Expr
    out: Expr
    others: tuple[Expr, ...] = ()  # what the kernel reads behind x
    weight: npt.NDArray[Any] | None = None
    bias: FloatArray | None = None
    residual: Expr = None
    activation: Activation = field(default_factory=Activation)
    members: list[Expr] = field(default_factory=list)
    overwrites: bool = False  # whether nothing reads the residual's memory any more

    @property
    def model_weight(self) -> npt.NDArray[Any] | None:
        """The weight as it stands in the model's graph."""
        return self.weight

    @property
    def epilogue(self) -> Epilogue:
        """What the kernel fuses."""
        return Epilogue(self.bias is not None, self.residual is not None, self.activation)


def _group_of(found: Found) -> Group:
    x, *others = found.operands
    return Group(
        _KINDS[type(found.spec)], found.spec, x, found.members[-1], tuple(others),
        members=list(found.members),
    )  # fmt: skip


class Matcher:
    """Definitions and uses of one function, and the groups found in it."""

    def __init__(
        self, function: Any, view: FunctionView | None = None, *, transformers: bool = True
    ) -> None:
        self._view = FunctionView(function) if view is None else view
        self._transformers = transformers
        self._attention = AttentionMatcher(self._view)
        self._rowwise = RowwiseMatcher(self._view)
        self._resampling = ResamplingMatcher(self._view)
        self._products = ProductMatcher(self._view)
        self._activations = ActivationMatcher(self._view)

    @cached_property
    def groups(self) -> list[Group]:
        """All groups, in the order in which their results are computed."""
        found = []
        for var, value in self._view.definitions.items():
            group = self._group(var, value)
            if group is not None:
                self._view.taken.update(group.members)
                found.append(group)
        found += self._free_products()
        found.sort(key=lambda group: self._view.places[group.out])
        self._find_overwrites(found)
        return found

    def _free_products(self) -> list[Group]:
        """Products of two activations that are left, as an attention may begin with one."""
        made = []
        for var in self._view.definitions if self._transformers else ():
            found = None if var in self._view.taken else self._products.match(var)
            if found is not None:
                made.append(_group_of(found))
                self._view.taken.update(found.members)
        return made

    def leftovers(self) -> list[str]:
        """Names of the operators that no group takes, in order."""
        taken = {var for group in self.groups for var in group.members}
        names = []
        for var, value in self._view.definitions.items():
            if isinstance(value, relax.Call) and var not in taken:
                names.append(operator_name(value))
        return names

    def _group(self, var: Expr, value: Expr) -> Group | None:
        """The whole group that starts at a variable, if one does."""
        group = self._root(var, value)
        if group is not None:
            self._grow(group)
        return group

    def reason(self, group: Group) -> str:
        """Why a layer of a quantised model is computed on real numbers; "" for all others."""
        return ""

    def remarks(self) -> list[str]:
        """What else of a quantised model is computed on real numbers, a sentence each."""
        return []

    # Step 1. Operators that start a group.

    def _root(self, var: Expr, value: Expr) -> Group | None:
        op = self._view.op(var)
        if not isinstance(value, relax.Call) or shape_of(var) is None:
            return None
        if op in ("argmax", "argmin"):
            return self._transformer(var) if self._transformers else None
        if str(var.ty.dtype) != "float32":
            return None
        if op == "nn.conv2d":
            return self._conv(var, value)
        if op == "matmul":
            return self._linear(var, value)
        if op in ("nn.max_pool2d", "nn.avg_pool2d"):
            return self._pool(var, value, op)
        if op == RECURRENT:
            return self._recurrent(var, value)
        found = self._transformer(var) if self._transformers else None
        if op == "mean" and found is None:
            return self._mean(var, value)
        return found

    def _transformer(self, var: Expr) -> Group | None:
        """Attention, a norm, a softmax, a resize, or a gelu that no product goes before."""
        gelu = self._activations.begun(var)
        if gelu is not None:
            return Group(
                "activation", Elementwise(shape_of(var) or ()), gelu.x, gelu.members[-1],
                activation=Activation(gelu.kind), members=list(gelu.members),
            )  # fmt: skip
        found = self._attention.match(var) if self._view.op(var) == "nn.softmax" else None
        found = self._rowwise.match(var) if found is None else found
        found = self._resampling.match(var) if found is None else found
        if found is None:
            return None
        return _group_of(found)

    def _conv(self, var: Expr, value: Expr) -> Group | None:
        x, attrs = value.args[0], value.attrs
        weight, shape, out = self._view.weight(value.args[1]), shape_of(x), shape_of(var)
        if weight is None or shape is None or out is None or weight.dtype != np.float32:
            return None
        if (attrs.data_layout, attrs.kernel_layout) != ("NCHW", "OIHW"):
            return None
        padding = [int(p) for p in attrs.padding]
        members = [var]
        padded = self._zero_padding(x)
        if padded is not None:
            if self._view.only_user(x) is not None:
                members = [x, var]
            x, extra = padded
            padding = [a + b for a, b in zip(padding, extra, strict=True)]
            inner = shape_of(x)
            assert inner is not None
            shape = inner
        spec = Conv2d(
            batch=shape[0],
            in_channels=shape[1],
            in_height=shape[2],
            in_width=shape[3],
            out_channels=weight.shape[0],
            kernel=(weight.shape[2], weight.shape[3]),
            stride=(int(attrs.strides[0]), int(attrs.strides[1])),
            padding=(padding[0], padding[1], padding[2], padding[3]),
            dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
            groups=int(attrs.groups),
        )
        if out != (spec.batch, spec.out_channels, spec.out_height, spec.out_width):
            return None
        return Group("conv2d", spec, x, var, weight=weight, members=members)

    def _zero_padding(self, x: Expr) -> tuple[Expr, list[int]] | None:
        """(input, (top, left, bottom, right)) of a zero padding of rows and columns only."""
        if self._view.op(x) != "nn.pad":
            return None
        attrs = self._view.definitions[x].attrs
        width = [int(p) for p in attrs.pad_width]
        value = getattr(attrs, "pad_value", 0.0)
        value = getattr(value, "value", value)
        if attrs.pad_mode != "constant" or float(value) != 0 or len(width) != 8 or any(width[:4]):
            return None
        if min(width) < 0 or shape_of(self._view.args(x)[0]) is None:
            return None
        return self._view.args(x)[0], [width[4], width[6], width[5], width[7]]

    def _linear(self, var: Expr, value: Expr) -> Group | None:
        x, weight, shape = value.args[0], self._view.weight(value.args[1]), shape_of(value.args[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
            return None
        spec = Linear(shape[:-1], weight.shape[0], weight.shape[1])
        matrix = np.ascontiguousarray(weight.T)
        return Group("linear", spec, x, var, weight=matrix, members=[var])

    def _recurrent(self, var: Expr, value: Expr) -> Group:
        spec, (x, *first), weight, bias = read_call(value)
        return Group("recurrent", spec, x, var, tuple(first), weight, bias, members=[var])

    def _pool(self, var: Expr, value: Expr, op: str) -> Group | None:
        x, attrs = value.args[0], value.attrs
        shape, out = shape_of(x), shape_of(var)
        if shape is None or out is None or attrs.layout != "NCHW":
            return None
        padding = [int(p) for p in attrs.padding]
        kernel = [int(k) for k in attrs.pool_size]
        for axis in (0, 1):
            # Heads pool with windows far larger than the image; what is outside does not count.
            if out[2 + axis] == 1 and padding[axis] == 0 and padding[axis + 2] == 0:
                kernel[axis] = min(kernel[axis], shape[2 + axis])
        if op == "nn.avg_pool2d" and out[2:] == (1, 1) and tuple(kernel) == shape[2:]:
            average = GlobalAverage(shape[0], shape[1], shape[2], shape[3], out)
            return Group("global_average", average, x, var, members=[var])
        if kernel[0] * kernel[1] > MAX_WINDOW:
            return None
        spec = Pool2d(
            kind="max" if op == "nn.max_pool2d" else "average",
            batch=shape[0],
            channels=shape[1],
            in_height=shape[2],
            in_width=shape[3],
            out_height=out[2],
            out_width=out[3],
            kernel=(kernel[0], kernel[1]),
            stride=(int(attrs.strides[0]), int(attrs.strides[1])),
            padding=(padding[0], padding[1], padding[2], padding[3]),
            dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
            count_include_pad=bool(attrs.count_include_pad),
        )
        return Group("pool2d", spec, x, var, members=[var])

    def _mean(self, var: Expr, value: Expr) -> Group | None:
        shape, out = shape_of(value.args[0]), shape_of(var)
        axes = value.attrs.axis
        if shape is None or out is None or len(shape) != 4 or axes is None:
            return None
        if {int(a) % 4 for a in axes} != {2, 3}:
            return None
        average = GlobalAverage(shape[0], shape[1], shape[2], shape[3], out)
        return Group("global_average", average, value.args[0], var, members=[var])

    # Step 2. What follows the operator.

    def _grow(self, group: Group) -> None:
        if group.op not in ("conv2d", "linear", "group_norm"):
            return
        while group.activation.kind == "none":
            found = self._activations.match(group.out)
            if found is not None:
                group.activation, members = found
                self._extend(group, members)
                return
            user = self._view.only_user(group.out)
            if user is None or group.op == "group_norm":
                return
            absorb = {"add": self._absorb_add, "reshape": self._absorb_reshape}
            absorbed = absorb.get(self._view.op(user))
            if absorbed is None or not absorbed(group, user):
                return
            self._extend(group, [user])

    def _extend(self, group: Group, members: list[Expr]) -> None:
        group.members += members
        group.out = members[-1]

    def _absorb_reshape(self, group: Group, user: Expr) -> bool:
        """Rows that were joined before a product and are parted again behind it, as torch does."""
        if group.op != "linear" or group.residual is not None:
            return False
        if self._view.op(group.x) != "reshape" or group.x in self._view.taken:
            return False
        assert isinstance(group.spec, Linear)
        before = self._view.args(group.x)[0]
        shape, after = shape_of(before), shape_of(user)
        features = (group.spec.in_features, group.spec.out_features)
        if shape is None or shape[-1:] != features[:1] or after != (*shape[:-1], features[1]):
            return False
        if self._view.only_user(group.x) is not None:
            group.members.insert(0, group.x)
        group.x, group.spec = before, replace(group.spec, lead=shape[:-1])
        return True

    def _absorb_add(self, group: Group, user: Expr) -> bool:
        left, right = self._view.args(user)
        other = right if left.same_as(group.out) else left
        if other.same_as(group.out) or shape_of(user) != shape_of(group.out):
            return False
        value = constant(other)
        if value is None:
            if group.residual is not None or shape_of(other) != shape_of(user):
                return False
            group.residual = other
            return True
        bias = per_channel(value, group)
        if bias is None:
            return False
        group.bias = bias if group.bias is None else group.bias + bias
        return True

    # Step 3. Residuals whose memory the output may take.

    def _find_overwrites(self, groups: list[Group]) -> None:
        """Mark the groups that are the last to read their residual.

        Only residuals that a group has made and only groups read: anything else might be a view of
        the same memory, or run at another place once TVM has fused it.
        """
        owner = {var: group for group in groups for var in group.members}
        made = {group.out for group in groups}
        place = self._view.places
        for group in groups:
            residual = group.residual
            if residual not in made or residual in self._view.outputs:
                continue
            if shape_of(residual) != shape_of(group.out):
                continue
            readers = [owner.get(user) for user in self._readers(residual)]
            group.overwrites = not group.x.same_as(residual) and all(
                reader is not None and place[reader.out] <= place[group.out] for reader in readers
            )

    def _readers(self, value: Expr) -> list[Expr]:
        """Who reads a value."""
        return self._view.users.get(value, [])


def per_channel(value: npt.NDArray[Any], group: Group) -> FloatArray | None:
    """A constant that is added to every pixel of a channel, as (out,); None for other shapes."""
    channels = group.spec.out_channels if isinstance(group.spec, Conv2d) else 0
    if isinstance(group.spec, Linear):
        channels, axis = group.spec.out_features, 1
    else:
        axis = 3
    shape = (1,) * (8 - value.ndim) + value.shape
    where = len(shape) - axis
    if value.dtype != np.float32 or any(e != 1 for i, e in enumerate(shape) if i != where):
        return None
    if shape[where] not in (1, channels):
        return None
    return np.broadcast_to(value.reshape(-1), (channels,)).astype(np.float32)
