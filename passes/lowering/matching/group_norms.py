"""Find group norms and instance norms of images, (batch, channels, ...).

1. as TVM's operators, which is what torch's become: an instance norm one of a single image, which
   has the channels of the whole batch;
2. spelled out, as the importer of ONNX writes an instance norm: a norm of rows (`norms.py`) whose
   scale and shift are constants for each channel;
3. as exports before opset 21 have a group norm: 2. of x reshaped to (batch, groups, ...), its scale
   and shift being ones and zeros, reshaped back, then a scale and a shift for each channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from tvm import relax

from nmcompile.kernels.spec import GroupNorm, LayerNorm
from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of

OPERATORS = ("nn.group_norm", "nn.instance_norm")


def group_norm(view: FunctionView, var: Expr) -> Found | None:
    """The norm that one of the `OPERATORS` is, if its axes are those of images (case 1)."""
    x, scale, shift = view.args(var)
    shape, attrs = shape_of(var), view.definitions[var].attrs
    if not shape or len(shape) < 3 or int(attrs.channel_axis) % len(shape) != 1:
        return None
    axes = {int(axis) % len(shape) for axis in attrs.axes}
    if axes - ({0} if shape[0] == 1 else set()) != set(range(2, len(shape))):
        return None
    given = [(bool(attrs.scale), scale), (bool(attrs.center), shift)]
    rows = [value for used, value in given if used]
    if any(shape_of(row) != shape[1:2] or str(row.ty.dtype) != "float32" for row in rows):
        return None
    groups = int(attrs.num_groups) if view.op(var) == "nn.group_norm" else shape[1]
    spec = GroupNorm(shape, groups, float(attrs.epsilon), given[0][0], given[1][0])
    return _of_batch(view, Found(spec, (x, *rows), (var,)))


def _of_batch(view: FunctionView, found: Found) -> Found:
    """An instance norm of one image that has the channels of a batch as one of the batch."""
    (x, *rows), spec, (var,) = found.operands, found.spec, found.members
    back = view.only_user(var)
    assert isinstance(spec, GroupNorm)
    if back is None or not {view.op(x), view.op(back)} <= set(RESHAPES) or x in view.taken:
        return found
    source = view.args(x)[0]
    shape = shape_of(source)
    if shape is None or shape != shape_of(back) or shape[2:] != spec.shape[2:]:
        return found
    if spec.groups != spec.shape[1] or spec.shape[0] != 1:
        return found
    parts = list[Expr]()
    for row in rows:
        held = constant(row)
        if held is None or (held.reshape(shape[:2]) != held[: shape[1]]).any():
            return found
        parts.append(relax.const(np.ascontiguousarray(held[: shape[1]])))
    before = (x,) if view.only_user(x) is not None else ()
    whole = replace(spec, shape=shape, groups=shape[1])
    return Found(whole, (source, *parts), (*before, var, back))


def with_channels(view: FunctionView, found: Found) -> Found:
    """A norm of rows as one of groups of channels, if it is followed by theirs (cases 2, 3)."""
    spec, shape = found.spec, shape_of(found.operands[0])
    if not isinstance(spec, LayerNorm) or not spec.centred or spec.scale or spec.shift:
        return found
    if shape is None or len(shape) < 3 or spec.features != math.prod(shape[2:]):
        return found
    return _Search(view, found, spec.epsilon, shape[1], shape).grown()


@dataclass
class _Search:
    """Behind the norm of rows that are found already.

    groups: rows of an image. shape: (batch, channels, ...) of what is between reshapes.
    rows: scale and shift of the channels, None for none.
    """

    view: FunctionView
    found: Found
    epsilon: float
    groups: int
    shape: tuple[int, ...]
    rows: list[Expr | None] = field(default_factory=lambda: [None, None])

    def grown(self) -> Found:
        """The norm with all that belongs to it."""
        x, last = self.found.operands[0], self.found.members[-1]
        members, best = set(self.found.members), self.found
        while (user := self.view.only_user(last)) is not None:
            name = self.view.op(user)
            if name in RESHAPES:
                source = self._before(x, user)
                if source is None:
                    break
                if members.issuperset(self.view.users[x]) and x not in self.view.outputs:
                    members.add(x)
                x, self.shape, self.rows = source, shape_of(source) or (), [None, None]
            elif not self._row(name, user, last):
                break
            members.add(user)
            last = user
            if any(row is not None for row in self.rows) and self.view.closed(members, last):
                best = self._result(x, members)
        return best

    def _before(self, x: Expr, user: Expr) -> Expr | None:
        """What x is a reshape of, if `user` reshapes back to that (case 3)."""
        if self.view.op(x) not in RESHAPES or x in self.view.taken:
            return None
        if not all(self._is_plain(place) for place in (0, 1)):
            return None
        source = self.view.args(x)[0]
        shape = shape_of(source)
        if shape is None or len(shape) < 3 or shape != shape_of(user):
            return None
        if shape[0] != self.shape[0] or shape[1] % self.groups:
            return None
        return source

    def _row(self, name: str, user: Expr, last: Expr) -> bool:
        """Whether an operator is the scale or the shift, which is then remembered."""
        place = {"multiply": 0, "add": 1}.get(name)
        if place is None or shape_of(user) != self.shape:
            return False
        if any(row is not None for row in self.rows[place:]):
            return False
        left, right = self.view.args(user)
        held = constant(right if left.same_as(last) else left)
        if held is None or held.dtype != np.float32 or held.ndim > len(self.shape):
            return False
        wide = held.reshape((1,) * (len(self.shape) - held.ndim) + held.shape)
        if any(extent != 1 for axis, extent in enumerate(wide.shape) if axis != 1):
            return False
        row = np.broadcast_to(wide.reshape(-1), self.shape[1:2])
        self.rows[place] = relax.const(np.ascontiguousarray(row))
        return True

    def _is_plain(self, place: int) -> bool:
        """Whether a scale is 1, or a shift 0, everywhere."""
        row = self.rows[place]
        return row is None or bool((row.value.numpy() == 1 - place).all())

    def _result(self, x: Expr, members: set[Expr]) -> Found:
        scale, shift = (row is not None for row in self.rows)
        spec = GroupNorm(self.shape, self.groups, self.epsilon, scale, shift)
        rows = [row for row in self.rows if row is not None]
        return Found(spec, (x, *rows), self.view.ordered(members))
