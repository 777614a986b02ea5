"""Find convolution, linear and pooling operators in a Relax function, with what fuses behind them.

A group starts at an operator with constant weights and grows along its only user:

1. a per-channel constant added: the bias;
2. a tensor of the same shape added, once: the residual;
3. an activation, which ends the group: relu, clip (also as minimum and maximum), sigmoid, silu,
   hard-sigmoid, hard-swish, gelu, in the spellings that torch and ONNX exports use.

Zero padding in front of a convolution becomes part of it. Values with other users are never
absorbed, so nothing is computed twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from nmcompile.kernels.catalog import OpKind
from nmcompile.kernels.spec import Activation, Conv2d, Epilogue, GlobalAverage, Linear, Pool2d

Expr = Any
FloatArray = npt.NDArray[np.float32]


@dataclass(eq=False)
class Group:
    """One operator and what is fused into it.

    `members` are the variables whose bindings the group replaces; the last one, `out`, keeps its
    place in the function.
    """

    op: OpKind
    spec: Conv2d | Linear | Pool2d | GlobalAverage
    x: Expr
    out: Expr
    weight: FloatArray | None = None
    bias: FloatArray | None = None
    residual: Expr = None
    activation: Activation = Activation()
    members: list[Expr] = field(default_factory=list)

    @property
    def epilogue(self) -> Epilogue:
        """What the kernel fuses."""
        return Epilogue(self.bias is not None, self.residual is not None, self.activation)


def shape_of(expr: Expr) -> tuple[int, ...] | None:
    """Static shape of a tensor, or None."""
    ty = expr.ty
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        return None
    try:
        return tuple(int(extent) for extent in ty.shape)
    except (TypeError, ValueError):
        return None


def constant(expr: Expr) -> npt.NDArray[Any] | None:
    """Value of a constant, or None."""
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    value: npt.NDArray[Any] = expr.value.numpy()
    return value


def scalar(expr: Expr) -> float | None:
    """Value of a one-element constant, or None."""
    value = constant(expr)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def operator_name(call: Expr) -> str:
    """Name of a Relax operator, or of the TIR function called, without "relax."."""
    name = str(getattr(call.op, "name", "call"))
    return str(call.args[0].name_hint) if name == "relax.call_tir" else name.removeprefix("relax.")


class Matcher:
    """Definitions and uses of one function, and the groups found in it."""

    def __init__(self, module: Any, function: Any) -> None:
        self._module = module
        self.definitions: dict[Expr, Expr] = {}
        self.users: dict[Expr, list[Expr]] = {}
        self._taken: set[Expr] = set()
        for block in function.body.blocks:
            for binding in block.bindings:
                self.definitions[binding.var] = binding.value
        for var, value in self.definitions.items():
            for used in relax.analysis.free_vars(value):
                self.users.setdefault(used, []).append(var)
        outputs = function.body.body
        self._outputs = {outputs, *relax.analysis.free_vars(outputs)}

    def groups(self) -> list[Group]:
        """All groups, in the order of their first operator."""
        found = []
        for var, value in self.definitions.items():
            group = self._root(var, value)
            if group is not None:
                self._grow(group)
                self._taken.update(group.members)
                found.append(group)
        return found

    def leftovers(self) -> list[str]:
        """Names of the operators that no group takes, in order."""
        taken = {var for group in self.groups() for var in group.members}
        names = []
        for var, value in self.definitions.items():
            if isinstance(value, relax.Call) and var not in taken:
                names.append(operator_name(value))
        return names

    def _op(self, expr: Expr) -> str:
        """Name of the operator that defines a variable, without "relax."; "" for others.

        The ONNX importer spells Clip as calls of TIR functions; they count as maximum and minimum.
        """
        value = self.definitions.get(expr, expr)
        if not isinstance(value, relax.Call):
            return ""
        name = str(getattr(value.op, "name", ""))
        if name == "relax.call_tir":
            callee = value.args[0].name_hint.split("_")[0].rstrip("0123456789")
            return callee if callee in ("maximum", "minimum") else ""
        return name.removeprefix("relax.")

    def _args(self, var: Expr) -> list[Expr]:
        value = self.definitions[var]
        if str(value.op.name) == "relax.call_tir":
            return list(value.args[1])
        return list(value.args)

    # Step 1. Operators that start a group.

    def _root(self, var: Expr, value: Expr) -> Group | None:
        op = self._op(var)
        if not isinstance(value, relax.Call) or shape_of(var) is None:
            return None
        if str(var.ty.dtype) != "float32":
            return None
        if op == "nn.conv2d":
            return self._conv(var, value)
        if op == "matmul":
            return self._linear(var, value)
        if op in ("nn.max_pool2d", "nn.avg_pool2d"):
            return self._pool(var, value, op)
        if op == "mean":
            return self._mean(var, value)
        return None

    def _conv(self, var: Expr, value: Expr) -> Group | None:
        x, attrs = value.args[0], value.attrs
        weight, shape, out = constant(value.args[1]), shape_of(x), shape_of(var)
        if weight is None or shape is None or out is None or weight.dtype != np.float32:
            return None
        if (attrs.data_layout, attrs.kernel_layout) != ("NCHW", "OIHW"):
            return None
        padding = [int(p) for p in attrs.padding]
        padded = self._zero_padding(x)
        if padded is not None:
            x, extra = padded
            padding = [a + b for a, b in zip(padding, extra, strict=True)]
            inner = shape_of(x)
            assert inner is not None
            shape = inner
        spec = Conv2d(
            *shape,
            out_channels=weight.shape[0],
            kernel=(weight.shape[2], weight.shape[3]),
            stride=(int(attrs.strides[0]), int(attrs.strides[1])),
            padding=(padding[0], padding[1], padding[2], padding[3]),
            dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
            groups=int(attrs.groups),
        )
        if out != (spec.batch, spec.out_channels, spec.out_height, spec.out_width):
            return None
        return Group("conv2d", spec, x, var, weight, members=[var])

    def _zero_padding(self, x: Expr) -> tuple[Expr, list[int]] | None:
        """(input, (top, left, bottom, right)) of a zero padding of rows and columns only."""
        if self._op(x) != "nn.pad":
            return None
        attrs = self.definitions[x].attrs
        width = [int(p) for p in attrs.pad_width]
        value = getattr(attrs, "pad_value", 0.0)
        value = getattr(value, "value", value)
        if attrs.pad_mode != "constant" or float(value) != 0 or len(width) != 8 or any(width[:4]):
            return None
        if min(width) < 0 or shape_of(self._args(x)[0]) is None:
            return None
        return self._args(x)[0], [width[4], width[6], width[5], width[7]]

    def _linear(self, var: Expr, value: Expr) -> Group | None:
        x, weight, shape = value.args[0], constant(value.args[1]), shape_of(value.args[0])
        if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2:
            return None
        spec = Linear(shape[:-1], weight.shape[0], weight.shape[1])
        return Group("linear", spec, x, var, np.ascontiguousarray(weight.T), members=[var])

    def _pool(self, var: Expr, value: Expr, op: str) -> Group | None:
        x, attrs = value.args[0], value.attrs
        shape, out = shape_of(x), shape_of(var)
        if shape is None or out is None or attrs.layout != "NCHW":
            return None
        padding = [int(p) for p in attrs.padding]
        spec = Pool2d(
            "max" if op == "nn.max_pool2d" else "average",
            *shape,
            out_height=out[2],
            out_width=out[3],
            kernel=(int(attrs.pool_size[0]), int(attrs.pool_size[1])),
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
        return Group(
            "global_average", GlobalAverage(*shape, out_shape=out), value.args[0], var,
            members=[var],
        )  # fmt: skip

    # Step 2. What follows the operator.

    def _grow(self, group: Group) -> None:
        if group.op not in ("conv2d", "linear"):
            return
        while group.activation.kind == "none":
            found = self._activation(group.out)
            if found is not None:
                group.activation, members = found
                self._extend(group, members)
                return
            user = self._only_user(group.out)
            if user is None or self._op(user) != "add" or not self._absorb_add(group, user):
                return
            self._extend(group, [user])

    def _extend(self, group: Group, members: list[Expr]) -> None:
        group.members += members
        group.out = members[-1]

    def _only_user(self, var: Expr) -> Expr | None:
        """The one variable computed from `var` alone, unless another group has taken it."""
        users = self.users.get(var, [])
        if len(users) != 1 or var in self._outputs or users[0] in self._taken:
            return None
        return users[0]

    def _absorb_add(self, group: Group, user: Expr) -> bool:
        left, right = self._args(user)
        other = right if left.same_as(group.out) else left
        if other.same_as(group.out) or shape_of(user) != shape_of(group.out):
            return False
        value = constant(other)
        if value is None:
            if group.residual is not None or shape_of(other) != shape_of(user):
                return False
            group.residual = other
            return True
        bias = _per_channel(value, group)
        if bias is None:
            return False
        group.bias = bias if group.bias is None else group.bias + bias
        return True

    # Step 3. Spellings of activations. Each returns the activation and the absorbed variables.

    def _activation(self, var: Expr) -> tuple[Activation, list[Expr]] | None:
        if var in self._outputs or any(u in self._taken for u in self.users.get(var, [])):
            return None
        gated = self._gated(var)
        if gated is not None:
            return gated
        user = self._only_user(var)
        if user is None:
            return None
        simple = {
            "nn.relu": "relu", "sigmoid": "sigmoid", "nn.silu": "silu", "nn.gelu": "gelu",
            "nn.relu6": "relu6",
        }  # fmt: skip
        kind = simple.get(self._op(user))
        if kind == "relu6":
            return Activation("clip", 0.0, 6.0), [user]
        if kind is not None:
            return Activation(kind), [user]  # type: ignore[arg-type]
        hard = self._hard_sigmoid(var)
        if hard is not None:
            return Activation("hard_sigmoid"), hard
        clip = self._clip(var)
        if clip is not None:
            low, high, members = clip
            if (low, high) == (0.0, math.inf):
                return Activation("relu"), members
            return Activation("clip", low, high), members
        return None

    def _gated(self, var: Expr) -> tuple[Activation, list[Expr]] | None:
        """x * gate(x): the value has two users, the gate's first operator and the product."""
        users = self.users.get(var, [])
        if len(users) != 2:
            return None
        for first, product in (users, users[::-1]):
            if self._op(product) != "multiply":
                continue
            for kind, gate in (
                ("silu", [first] if self._op(first) == "sigmoid" else None),
                ("hard_swish", self._hard_sigmoid(var, first)),
                ("gelu", self._erf_gate(first)),
            ):
                if gate is not None and self._only_user(gate[-1]) is product:
                    members = [*gate, product]
                    if kind != "gelu":
                        return Activation(kind), members  # type: ignore[arg-type]
                    halved = self._scaled(product, 0.5)
                    if halved is not None:
                        return Activation("gelu"), [*members, halved]
            scaled = self._late_hard_swish(var, first, product)
            if scaled is not None:
                return Activation("hard_swish"), scaled
        return None

    def _late_hard_swish(self, var: Expr, first: Expr, product: Expr) -> list[Expr] | None:
        """x * clip(x + 3, 0, 6) / 6, divided after the product."""
        shifted = self._clipped_shift(var, first, 3.0, 6.0)
        if shifted is None or self._only_user(shifted[-1]) is not product:
            return None
        last = self._scaled(product, 1 / 6)
        return None if last is None else [*shifted, product, last]

    def _hard_sigmoid(self, var: Expr, first: Expr | None = None) -> list[Expr] | None:
        """clip(x + 3, 0, 6) / 6 or clip(x / 6 + 1 / 2, 0, 1)."""
        first = self._only_user(var) if first is None else first
        if first is None:
            return None
        shifted = self._clipped_shift(var, first, 3.0, 6.0)
        if shifted is not None:
            last = self._scaled(shifted[-1], 1 / 6)
            return None if last is None else [*shifted, last]
        if self._is_scaling(first, var, 1 / 6):
            second = self._only_user(first)
            shifted = None if second is None else self._clipped_shift(first, second, 0.5, 1.0)
            return None if shifted is None else [first, *shifted]
        return None

    def _clipped_shift(
        self, var: Expr, first: Expr, shift: float, high: float
    ) -> list[Expr] | None:
        """clip(var + shift, 0, high), where `first` is the addition."""
        if self._op(first) != "add" or self._other_scalar(first, var) != shift:
            return None
        clip = self._clip(first)
        return [first, *clip[2]] if clip is not None and clip[:2] == (0.0, high) else None

    def _clip(self, var: Expr) -> tuple[float, float, list[Expr]] | None:
        """Limits of a chain of clip, maximum, minimum and relu behind `var`."""
        low, high, members = -math.inf, math.inf, list[Expr]()
        while True:
            user = self._only_user(members[-1] if members else var)
            bounds = None if user is None else self._bounds(user, members[-1] if members else var)
            if user is None or bounds is None:
                break
            low, high = min(max(low, bounds[0]), bounds[1]), max(min(high, bounds[1]), bounds[0])
            members.append(user)
        return (low, high, members) if members else None

    def _bounds(self, user: Expr, var: Expr) -> tuple[float, float] | None:
        op = self._op(user)
        if op == "clip":
            low, high = (float(getattr(a, "value", a)) for a in self._clip_limits(user))
            return low, high
        if op == "nn.relu":
            return 0.0, math.inf
        if op in ("maximum", "minimum"):
            limit = self._other_scalar(user, var)
            if limit is not None and shape_of(user) == shape_of(var):
                return (limit, math.inf) if op == "maximum" else (-math.inf, limit)
        return None

    def _clip_limits(self, user: Expr) -> list[Any]:
        return [getattr(a, "value", a) for a in self._args(user)[1:3]]

    def _erf_gate(self, first: Expr) -> list[Expr] | None:
        """1 + erf(x / sqrt(2))."""
        scaled = self._op(first) in ("divide", "multiply")
        factor = self._scale(first) if scaled else None
        if factor is None or not math.isclose(factor, math.sqrt(0.5), rel_tol=1e-5):
            return None
        erf = self._only_user(first)
        if erf is None or self._op(erf) != "erf":
            return None
        last = self._only_user(erf)
        if last is None or self._op(last) != "add" or self._other_scalar(last, erf) != 1.0:
            return None
        return [first, erf, last]

    def _scale(self, var: Expr) -> float | None:
        """Factor c of x * c or x / d = x * (1 / d)."""
        args = self._args(var)
        if self._op(var) == "divide":
            divisor = scalar(args[1])
            return 1.0 / divisor if divisor else None
        if self._op(var) == "multiply":
            left, right = scalar(args[0]), scalar(args[1])
            return right if left is None else left
        return None

    def _is_scaling(self, user: Expr, var: Expr, factor: float) -> bool:
        if self._op(user) not in ("divide", "multiply") or shape_of(user) != shape_of(var):
            return False
        found = self._scale(user)
        return found is not None and math.isclose(found, factor, rel_tol=1e-5)

    def _scaled(self, var: Expr, factor: float) -> Expr | None:
        """The only user of `var`, if it multiplies it by `factor`."""
        user = self._only_user(var)
        return user if user is not None and self._is_scaling(user, var, factor) else None

    def _other_scalar(self, user: Expr, var: Expr) -> float | None:
        left, right = self._args(user)[:2]
        return scalar(right if left.same_as(var) else left)


def _per_channel(value: npt.NDArray[Any], group: Group) -> FloatArray | None:
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
