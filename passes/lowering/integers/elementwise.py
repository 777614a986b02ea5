"""Find what is computed value by value: tables, gates, and real numbers that are rounded."""

from __future__ import annotations

import math

from nmcompile.kernels.integers import Gate, Quantise, Table
from nmcompile.passes.lowering.integers.group import IntegerGroup
from nmcompile.passes.lowering.integers.settle import runs
from nmcompile.passes.lowering.integers.table import Function
from nmcompile.passes.lowering.integers.values import QuantisedView
from nmcompile.passes.lowering.view import Expr, shape_of


def find_table(view: QuantisedView, var: Expr) -> IntegerGroup | None:
    """Functions of one quantised value, rounded again."""
    target, shape = view.rounding(var), shape_of(var)
    if target is None or shape is None:
        return None
    function = Function(view, view.source(var))
    source = function.source
    if source is None:
        return None
    inner = set(function.members) | {var}
    members = [m for m in function.members if set(view.users.get(m, ())) <= inner]
    return IntegerGroup(
        "table", Table(math.prod(shape)), source.var, var, members=[*members, var],
        source=source.meaning, target=target, table=target.stored(function.results()),
    )  # fmt: skip


def find_gate(view: QuantisedView, var: Expr) -> IntegerGroup | None:
    """Products of a quantised value with another, or with one for each channel."""
    target, shape = view.rounding(var), shape_of(var)
    if target is None or shape is None or len(shape) != 4:
        return None
    product = view.source(var)
    if view.op(product) != "multiply" or shape_of(product) != shape:
        return None
    sides = [view.quantised(side) for side in view.args(product)]
    sides.sort(key=lambda side: side is None or shape_of(side.var) != shape)
    x, gate = sides
    if x is None or gate is None or shape_of(x.var) != shape:
        return None
    batch, channels, height, width = shape
    if shape_of(gate.var) != (batch, channels, 1, 1):
        return None
    members = [var] if view.only_user(product) is None else [product, var]
    group = IntegerGroup(
        "gate", Gate(batch, height * width, channels), x.var, var, members=members,
        source=x.meaning, added=gate.meaning, residual=gate.var, target=target,
    )  # fmt: skip
    return group if runs(group) else None


def find_quantise(view: QuantisedView, var: Expr, in_rows: bool) -> IntegerGroup | None:
    """Real numbers that are rounded to integers; `in_rows` keeps four dimensions in order."""
    target, shape = view.rounding(var), shape_of(var)
    if target is None or not shape or not math.prod(shape):
        return None
    rows = in_rows or len(shape) != 4
    # One channel leaves the order as it is.
    spec = Quantise(1, 1, math.prod(shape[:-1]), shape[-1]) if rows else Quantise(*shape)
    x = view.source(var)
    if str(x.ty.dtype) != "float32":
        return None
    group = IntegerGroup("quantise", spec, x, var, members=[var], target=target, rows=rows)
    return group if runs(group) else None
