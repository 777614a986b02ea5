"""Activations in the spellings that torch and ONNX exports use.

relu, clip (also as minimum and maximum), sigmoid, silu, hard-sigmoid, hard-swish, gelu and its form
with a tangent. Each matcher returns the variables it absorbs, so that the caller can drop their
bindings.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from nmcompile.kernels.spec import Activation, ActivationKind
from nmcompile.passes.lowering.matching.gelu import FoundGelu, find_gelu
from nmcompile.passes.lowering.matching.traced import scaling_of
from nmcompile.passes.lowering.view import Expr, FunctionView, scalar, shape_of

GELUS: dict[str, ActivationKind] = {"nn.gelu": "gelu", "nn.gelu_tanh": "gelu_tanh"}
"""Operators that are one."""


class ActivationMatcher:
    """Finds the activation behind a value."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def begun(self, var: Expr) -> FoundGelu | None:
        """The GELU whose first variable this is, unless a group has taken it; or None."""
        kind = GELUS.get(self._view.op(var))
        if kind is not None:
            found: FoundGelu | None = FoundGelu(kind, self._view.args(var)[0], (var,))
        else:
            found = self._begun.get(var)
        return None if found is None or self._view.taken.intersection(found.members) else found

    @cached_property
    def _gelus(self) -> list[FoundGelu]:
        """Those that are spelled out; several may be of one value."""
        return list(find_gelu(self._view))

    @cached_property
    def _behind(self) -> dict[Expr, FoundGelu]:
        """The same, by what they are of."""
        return {found.x: found for found in self._gelus}

    @cached_property
    def _begun(self) -> dict[Expr, FoundGelu]:
        """The same, by their first variables."""
        return {found.members[0]: found for found in self._gelus}

    def match(self, var: Expr) -> tuple[Activation, list[Expr]] | None:
        """The activation that follows a value, and the variables it absorbs, the result last."""
        users = self._view.users.get(var, [])
        if var in self._view.outputs or any(user in self._view.taken for user in users):
            return None
        gelu = self._behind.get(var)
        if gelu is not None and set(users) <= set(gelu.members):
            return Activation(gelu.kind), list(gelu.members)
        gated = self._gated(var)
        if gated is not None:
            return gated
        user = self._view.only_user(var)
        if user is None:
            return None
        simple: dict[str, ActivationKind] = {
            "nn.relu": "relu", "sigmoid": "sigmoid", "nn.silu": "silu", **GELUS,
        }  # fmt: skip
        kind = simple.get(self._view.op(user))
        if self._view.op(user) == "nn.relu6":
            return Activation("clip", 0.0, 6.0), [user]
        if kind is not None:
            return Activation(kind), [user]
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
        """Match x * gate(x): the value has two users, the gate's first operator and the product."""
        users = self._view.users.get(var, [])
        if len(users) != 2:
            return None
        for first, product in (users, users[::-1]):
            if self._view.op(product) != "multiply":
                continue
            gates: tuple[tuple[ActivationKind, list[Expr] | None], ...] = (
                ("silu", [first] if self._view.op(first) == "sigmoid" else None),
                ("hard_swish", self._hard_sigmoid(var, first)),
            )
            for kind, gate in gates:
                if gate is not None and self._view.only_user(gate[-1]) is product:
                    return Activation(kind), [*gate, product]
            scaled = self._late_hard_swish(var, first, product)
            if scaled is not None:
                return Activation("hard_swish"), scaled
        return None

    def _late_hard_swish(self, var: Expr, first: Expr, product: Expr) -> list[Expr] | None:
        """Match x * clip(x + 3, 0, 6) / 6, divided after the product."""
        shifted = self._clipped_shift(var, first, 3.0, 6.0)
        if shifted is None or self._view.only_user(shifted[-1]) is not product:
            return None
        last = self._scaled(product, 1 / 6)
        return None if last is None else [*shifted, product, last]

    def _hard_sigmoid(self, var: Expr, first: Expr | None = None) -> list[Expr] | None:
        """Match clip(x + 3, 0, 6) / 6 or clip(x / 6 + 1 / 2, 0, 1)."""
        first = self._view.only_user(var) if first is None else first
        if first is None:
            return None
        shifted = self._clipped_shift(var, first, 3.0, 6.0)
        if shifted is not None:
            last = self._scaled(shifted[-1], 1 / 6)
            return None if last is None else [*shifted, last]
        if self._is_scaling(first, var, 1 / 6):
            second = self._view.only_user(first)
            shifted = None if second is None else self._clipped_shift(first, second, 0.5, 1.0)
            return None if shifted is None else [first, *shifted]
        return None

    def _clipped_shift(
        self, var: Expr, first: Expr, shift: float, high: float
    ) -> list[Expr] | None:
        """Match clip(var + shift, 0, high), where `first` is the addition."""
        if self._view.op(first) != "add" or self._other_scalar(first, var) != shift:
            return None
        clip = self._clip(first)
        return [first, *clip[2]] if clip is not None and clip[:2] == (0.0, high) else None

    def _clip(self, var: Expr) -> tuple[float, float, list[Expr]] | None:
        """Limits of a chain of clip, maximum, minimum and relu behind `var`."""
        low, high, members = -math.inf, math.inf, list[Expr]()
        while True:
            user = self._view.only_user(members[-1] if members else var)
            bounds = None if user is None else self._bounds(user, members[-1] if members else var)
            if user is None or bounds is None:
                break
            low, high = min(max(low, bounds[0]), bounds[1]), max(min(high, bounds[1]), bounds[0])
            members.append(user)
        return (low, high, members) if members else None

    def _bounds(self, user: Expr, var: Expr) -> tuple[float, float] | None:
        op = self._view.op(user)
        if op == "clip":
            low, high = (float(getattr(a, "value", a)) for a in self._clip_limits(user))
            return low, high
        if op == "nn.relu":
            return 0.0, math.inf
        if op in ("maximum", "minimum"):
            limit = self._other_scalar(user, var)
            if limit is not None and not math.isnan(limit) and shape_of(user) == shape_of(var):
                return (limit, math.inf) if op == "maximum" else (-math.inf, limit)
        return None

    def _clip_limits(self, user: Expr) -> list[Any]:
        return [getattr(a, "value", a) for a in self._view.args(user)[1:3]]

    def _is_scaling(self, user: Expr, var: Expr, factor: float) -> bool:
        found = scaling_of(self._view, user)
        if found is None or not found[0].same_as(var):
            return False
        return math.isclose(found[1], factor, rel_tol=1e-5)

    def _scaled(self, var: Expr, factor: float) -> Expr | None:
        """The only user of `var`, if it multiplies it by `factor`."""
        user = self._view.only_user(var)
        return user if user is not None and self._is_scaling(user, var, factor) else None

    def _other_scalar(self, user: Expr, var: Expr) -> float | None:
        left, right = self._view.args(user)[:2]
        return scalar(right if left.same_as(var) else left)
