"""Find what runs on integers in a Relax function with quantize and dequantize.

A group starts at an operator whose activation is a `dequantize` of one scale, and whose weight, if
it has one, is a `dequantize` of s8 with zero point 0 or of u8 around a zero point. It grows along
its only user over

1. a per-channel constant: the bias, which becomes an integer in units of the sums;
2. `quantize` and `dequantize` in front of a sum: the middle rounding;
3. a sum with another `dequantize`: the residual; or, of a matrix product that nothing rounds, with
   real numbers; or, behind a middle rounding, with a per-channel constant: the late bias, as a
   quantiser leaves it that knows no product with a bias;
4. an activation;
5. `quantize`, which ends the group.

A group that no `quantize` ends gives real numbers. Layer norms and attention of real numbers end
with a `quantize` that alone reads them. Everything between two quantised values that is
computed value by value is a table of 256; sums of two quantised values are a group of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

from tvm import relax

from nmcompile.kernels.integers import Sum
from nmcompile.kernels.spec import Activation, GlobalAverage, Pool2d
from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.integers.elementwise import (
    find_gate,
    find_quantise,
    find_table,
)
from nmcompile.passes.lowering.integers.group import IntegerGroup
from nmcompile.passes.lowering.integers.moves import Joined, Moved, find_joined, find_moved
from nmcompile.passes.lowering.integers.settle import LIMITS, has_kernel, runs, signed_weight
from nmcompile.passes.lowering.integers.values import Quantisation, QuantisedView
from nmcompile.passes.lowering.matching.match import FloatArray, Group, Matcher, per_channel
from nmcompile.passes.lowering.view import Expr, constant, operator_name, shape_of

ROUNDED = ("layer_norm", "attention")
"""Operators on real numbers whose kernels round what they write."""


class IntegerMatcher(Matcher):
    """Groups of integers, and among what is left groups of floats."""

    _view: QuantisedView

    def __init__(self, function: Any) -> None:
        super().__init__(function, QuantisedView(function))
        self.live: set[Expr] = set()
        self._stays_float: dict[Expr, str] = {}

    @cached_property
    def groups(self) -> list[Group]:
        """All groups that the outputs need, in the order in which they are computed."""
        view, found = self._view, list[Group]()

        def take(group: Group | None) -> None:
            if group is not None:
                view.taken.update(group.members)
                found.append(group)

        free = list(view.definitions.items())
        for var, value in free:
            take(self._product(var, value) or self._sum(var))
        # From behind, so that the longest functions are found first.
        for var, _ in reversed(free):
            if var not in view.taken and not self._is_move(var):
                take(find_table(view, var) or find_gate(view, var))
        read_as_rows = {group.x for group in found if group.op == "linear"}
        for var, value in free:
            if var not in view.taken and not self._is_move(var):
                rows = var in read_as_rows
                take(find_quantise(view, var, rows) or self._real(var, value, read_as_rows))
        found += self._free_products()
        found.sort(key=lambda group: view.places[group.out])
        self.live = self._find_live(found)
        needed = [group for group in found if group.out in self.live]
        self._find_overwrites(needed)
        return needed

    def leftovers(self) -> list[str]:
        """Names of the operators that no group takes and something reads, in order."""
        taken = {var for group in self.groups for var in group.members}
        return [
            operator_name(value)
            for var, value in self._view.definitions.items()
            if isinstance(value, relax.Call) and var in self.live and var not in taken
        ]

    def reason(self, group: Group) -> str:
        """Why a convolution or matrix product is computed on real numbers; "" for all others.

        A model without any quantised value is meant to be.
        """
        if not self._quantised or isinstance(group, IntegerGroup) or group.weight is None:
            return ""
        reasons = (self._stays_float.get(member, "") for member in group.members)
        return next(filter(None, reasons), "")

    def remarks(self) -> list[str]:
        """Matrix products of two quantised values, as a quantised attention has them."""
        real = {group.out for group in self.groups if group.op == "product"}
        taken = {var for group in self.groups for var in group.members} - real
        count = sum(
            self._view.op(var) == "matmul"
            and all(self._view.quantised(side) is not None for side in self._view.args(var))
            for var in self.live - taken
        )
        if not count:
            return []
        what = "1 product of two activations is" if count == 1 else (
            f"{count} products of two activations are"
        )  # fmt: skip
        return [
            f"{what} computed in float32 between roundings: integers are multiplied by constant "
            "weights only; attention that is left in float32 when quantising has a kernel"
        ]

    @cached_property
    def _quantised(self) -> bool:
        return any(isinstance(group, IntegerGroup) for group in self.groups)

    def is_real(self, var: Expr) -> bool:
        """Whether a value is the real numbers of a quantised one."""
        return self._view.op(var) == "dequantize"

    def meaning(self, var: Expr) -> Quantisation | None:
        """What a quantised value means: as it was rounded, or as it is read."""
        known = self._view.rounding(var)
        if known is not None:
            return known
        readers = [self._view.quantised(user) for user in self._view.users.get(var, ())]
        return next((reader.meaning for reader in readers if reader is not None), None)

    def moved(self, var: Expr) -> Moved | None:
        """See `find_moved`."""
        return find_moved(self._view, var)

    def joined(self, var: Expr) -> Joined | None:
        """See `find_joined`."""
        return find_joined(self._view, var)

    def _is_move(self, var: Expr) -> bool:
        return self.moved(var) is not None or self.joined(var) is not None

    def _find_live(self, groups: list[Group]) -> set[Expr]:
        """The values that the outputs need and that are read as such, and not inside a group."""
        view = self._view
        live = set(view.outputs)
        by_out = {group.out: group for group in groups}
        inner = {var for group in groups for var in group.members} - set(by_out)
        for var, value in reversed(view.definitions.items()):
            if var not in live or var in inner:
                continue
            group, joined, moved = by_out.get(var), self.joined(var), self.moved(var)
            if group is not None:
                for value in (group.x, *group.others, group.residual):
                    if value is not None:
                        live.update(relax.analysis.free_vars(value))
            elif joined is not None:
                live.update(part.var for part in joined.parts)
            elif moved is not None:
                live.add(moved.var)
            else:
                live.update(relax.analysis.free_vars(value))
        return live

    # Step 1. Operators that start a group.

    def _product(self, var: Expr, value: Expr) -> IntegerGroup | None:
        """Convolutions, matrix products and pooling."""
        found = self._root(var, value)
        if found is None or found.op in ROUNDED:
            return None
        x = self._view.quantised(self._unshaped(found))
        if x is None:
            self._stays_float[var] = (
                "its input is not rounded to one scale: put QuantizeLinear and DequantizeLinear of "
                "one scale in front of it"
            )
            return None
        rows = found.op == "linear"
        group = IntegerGroup(
            found.op, found.spec, x.var, var, members=[var], source=x.meaning, rows=rows
        )
        if found.weight is not None:
            group.weights = self._view.integer_weight(value.args[1])
            if group.weights is None:
                self._stays_float[var] = "its weight is not quantised: quantise it to int8"
                return None
            group.weight = signed_weight(group)
            if group.weight is None:
                self._stays_float[var] = (
                    "its weight less its zero point does not fit int8, or its scales do not follow "
                    "the outputs: quantise weights symmetrically, one scale for each output"
                )
                return None
        if isinstance(found.spec, Pool2d) and found.spec.kind == "max":
            return self._unchanged(group)
        self._follow(group)
        if runs(group):
            return group
        self._stays_float[var] = (
            "its sums may leave int32: the scales of its input, weight and output do not fit"
        )
        return None

    def _real(self, var: Expr, value: Expr, read_as_rows: set[Expr]) -> Group | None:
        """Operators on real numbers, with the rounding behind a layer norm or an attention."""
        found = self._group(var, value)
        if found is None or found.op not in ROUNDED:
            return found
        members = list(found.members)
        while (user := self._view.only_user(members[-1])) is not None:
            members.append(user)
            if self._view.op(user) not in RESHAPES:
                break
        target, shape = self._view.rounding(members[-1]), shape_of(members[-1]) or ()
        if target is None or (len(shape) == 4 and members[-1] not in read_as_rows):
            return found  # the kernel writes values in their order, and others read channels last
        group = IntegerGroup(
            found.op, found.spec, found.x, members[-1], found.others, members=members,
            target=target, rows=True,
        )  # fmt: skip
        return group if runs(group) else found

    def _unshaped(self, found: Group) -> Expr:
        """What a product reads, before reshapes, which leave the order of its elements."""
        x = found.x
        while found.op == "linear" and self._view.op(x) in RESHAPES:
            x = self._view.source(x)
        return x

    def _sum(self, var: Expr) -> IntegerGroup | None:
        """Sums of two quantised values."""
        shape = shape_of(var)
        if self._view.op(var) != "add" or shape is None or var in self._view.taken:
            return None
        sides = [self._view.quantised(side) for side in self._view.args(var)]
        if any(side is None or shape_of(side.var) != shape for side in sides):
            return None
        left, right = sides
        assert left is not None and right is not None
        group = IntegerGroup(
            "sum", Sum(math.prod(shape)), left.var, var, members=[var],
            source=left.meaning, added=right.meaning, residual=right.var,
        )  # fmt: skip
        self._follow(group)
        return group if group.target is not None and runs(group) else None

    def _unchanged(self, group: IntegerGroup) -> IntegerGroup | None:
        """A maximum of integers, which means what they mean."""
        user = self._view.only_user(group.out)
        target = None if user is None else self._view.rounding(user)
        if user is None or target != group.source:
            return None
        group.target = target
        self._extend(group, [user])
        return group if has_kernel(group) else None

    # Step 2. What follows the operator.

    def _follow(self, group: IntegerGroup) -> None:
        """Grow a group to the rounding that ends it, or as far as it goes."""
        while group.target is None:
            if group.activation.kind == "none" and self._follow_activation(group):
                continue
            user = self._view.only_user(group.out)
            if user is None:
                return
            if self._view.op(user) == "quantize":
                target = self._view.rounding(user)
                if target is None or group.adds_real:
                    return
                behind = self._sum_behind(group, user)
                if behind is None:
                    group.target = target
                    self._extend(group, [user])
                    return
                group.middle, group.middle_activation = target, group.activation
                group.activation = Activation()
                self._extend(group, behind)
            elif group.activation.kind != "none":
                return
            elif not self._follow_operator(group, user):
                return

    def _follow_activation(self, group: IntegerGroup) -> bool:
        """Absorb an activation, which may be several users of one value; says whether it did."""
        found = self._activations.match(group.out)
        if found is not None:
            group.activation, members = found
            self._extend(group, members)
        return found is not None

    def _follow_operator(self, group: IntegerGroup, user: Expr) -> bool:
        """Absorb a bias, a residual or a view; says whether it did."""
        if isinstance(group.spec, GlobalAverage) and self._view.op(user) in RESHAPES:
            shape = shape_of(user)
            if shape != (group.spec.batch, group.spec.channels):
                return False
            group.spec = replace(group.spec, out_shape=shape)
            self._extend(group, [user])
            return True
        if group.op == "linear" and self._view.op(user) in RESHAPES:
            self._extend(group, [user])
            return True
        if self._view.op(user) != "add" or group.op not in ("conv2d", "linear"):
            return False
        left, right = self._view.args(user)
        other = right if left.same_as(group.out) else left
        if constant(other) is not None:
            if group.residual is not None or not self._absorb_constant(group, user, other):
                return False
        elif not self._absorb_residual(group, user, other):
            return False
        self._extend(group, [user])
        return True

    def _absorb_constant(self, group: IntegerGroup, user: Expr, other: Expr) -> bool:
        if group.middle is None:
            return self._absorb_add(group, user)
        bias = self._late_bias(group, user, other)
        if bias is not None:
            group.late_bias = bias
        return bias is not None

    def _late_bias(self, group: IntegerGroup, user: Expr, other: Expr) -> FloatArray | None:
        """A constant of each output of a product that has none yet behind its rounding."""
        value = constant(other)
        if value is None or group.op != "linear" or group.late_bias is not None:
            return None
        return per_channel(value, group) if shape_of(user) == shape_of(group.out) else None

    def _absorb_residual(self, group: IntegerGroup, user: Expr, other: Expr) -> bool:
        added = self._view.quantised(other)
        if group.residual is not None or other.same_as(group.out):
            return False
        if shape_of(other) != shape_of(user) or shape_of(user) != shape_of(group.out):
            return False
        if added is not None:
            group.residual, group.added = added.var, added.meaning
            return True
        if group.op != "linear" or group.middle is not None or str(other.ty.dtype) != "float32":
            return False
        group.residual = other
        return True

    def _sum_behind(self, group: IntegerGroup, rounded: Expr) -> list[Expr] | None:
        """[quantize, dequantize] where a sum with another quantised value, or a bias, follows."""
        limited = group.activation.kind in LIMITS
        if group.residual is not None or group.middle is not None:
            return None
        if group.op not in ("conv2d", "linear") or not limited:
            return None
        again = self._view.only_user(rounded)
        if again is None or self._view.quantised(again) is None:
            return None
        user = self._view.only_user(again)
        if user is None or self._view.op(user) != "add" or shape_of(user) != shape_of(again):
            return None
        others = [side for side in self._view.args(user) if not side.same_as(again)]
        if len(others) != 1:
            return None
        whole = shape_of(others[0]) == shape_of(user)
        added = whole and self._view.quantised(others[0]) is not None
        biased = self._late_bias(group, user, others[0]) is not None
        return [rounded, again] if added or biased else None

    # Step 3. Residuals whose memory the output may take.

    def _readers(self, value: Expr) -> list[Expr]:
        """Who reads a value, through `dequantize`."""
        found = []
        for user in self._view.users.get(value, []):
            real = self._view.quantised(user) is not None
            found += self._view.users.get(user, []) if real else [user]
            if real and user in self._view.outputs:
                found.append(user)
        return found
