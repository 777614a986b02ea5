"""Reading a Relax function: who defines a value, who uses it, and what the operator is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax

Expr = Any


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
    """Value of a constant tensor, or None."""
    if not isinstance(expr, tvm.ir.GenericConst) or not isinstance(expr.ty, relax.TensorType):
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


def is_call_of(expr: Expr, name: str) -> bool:
    """Whether an expression calls the Relax function of this name."""
    return isinstance(expr, relax.Call) and getattr(expr.op, "name_hint", "") == name


class FunctionView:
    """Definitions and uses of the variables of one function.

    `taken` holds the variables that a group has absorbed: nothing else may absorb them.
    """

    def __init__(self, function: Any) -> None:
        self.definitions: dict[Expr, Expr] = {}
        self.users: dict[Expr, list[Expr]] = {}
        self.taken: set[Expr] = set()
        for block in function.body.blocks:
            for binding in block.bindings:
                self.definitions[binding.var] = binding.value
        for var, value in self.definitions.items():
            for used in relax.analysis.free_vars(value):
                self.users.setdefault(used, []).append(var)
        outputs = function.body.body
        self.outputs = {outputs, *relax.analysis.free_vars(outputs)}

    def op(self, expr: Expr) -> str:
        """Name of the operator that defines a variable, without "relax."; "" for others.

        The ONNX importer spells Clip as calls of TIR functions; they count as maximum and minimum.
        Steps of recurrent layers are calls of functions that are nowhere (`matching.recurrent`).
        """
        value = self.definitions.get(expr, expr)
        if not isinstance(value, relax.Call):
            return ""
        name = str(getattr(value.op, "name", ""))
        if name == "relax.call_tir":
            callee = str(value.args[0].name_hint).split("_")[0].rstrip("0123456789")
            return callee if callee in ("maximum", "minimum") else ""
        if name == "relax.call_dps_packed":
            return str(value.args[0].global_symbol).partition(":")[0]
        return name.removeprefix("relax.")

    def args(self, var: Expr) -> list[Expr]:
        """Arguments of the operator that defines a variable."""
        value = self.definitions[var]
        if str(value.op.name) == "relax.call_tir":
            return list(value.args[1])
        return list(value.args)

    def operands(self, var: Expr) -> list[Expr]:
        """The tensors that an operator takes, those in tuples too."""
        found = []
        for argument in self.args(var):
            found += list(argument.fields) if isinstance(argument, relax.Tuple) else [argument]
        return [expr for expr in found if isinstance(expr.ty, relax.TensorType)]

    def ordered(self, variables: Iterable[Expr]) -> tuple[Expr, ...]:
        """Variables in the order of their definitions."""
        return tuple(sorted(variables, key=self.places.__getitem__))

    @cached_property
    def places(self) -> dict[Expr, int]:
        """Where variables stand in the order of their definitions."""
        return {var: place for place, var in enumerate(self.definitions)}

    def closed(self, members: set[Expr], last: Expr) -> bool:
        """Whether only members read what they compute, but for the last."""
        inner = members - {last}
        read_inside = all(members.issuperset(self.users.get(var, [])) for var in inner)
        return read_inside and inner.isdisjoint(self.outputs)

    def weight(self, expr: Expr) -> npt.NDArray[Any] | None:
        """The real numbers of a constant weight, or None."""
        return constant(expr)

    def only_user(self, var: Expr) -> Expr | None:
        """The one variable computed from `var` alone, unless another group has taken it."""
        users = self.users.get(var, [])
        if len(users) != 1 or var in self.outputs or users[0] in self.taken:
            return None
        return users[0]
