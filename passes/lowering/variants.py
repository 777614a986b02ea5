"""Modules of one model for several shapes, lowered one by one, as one module over the same weights.

Each keeps its entry function, under a name of its own; functions in TIR are named by content, so
that those which several shapes call are there once. Arrays are kept once by what they hold, and
what is prepared of them is prepared once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.expr import _update_type

from nmcompile.kernels.objects import MADE_BY
from nmcompile.kernels.problem import Prepare
from nmcompile.passes.lowering.batch.split import EARLY
from nmcompile.passes.lowering.calls import Entry
from nmcompile.passes.lowering.kernels import ENTRY, LoweredModule
from nmcompile.passes.lowering.naming import Content, content_name, content_of
from nmcompile.passes.lowering.prepare import PREPARE, Operand, add_prepare
from nmcompile.runtime.steps import binding

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Joined:
    """What several lowered modules add up to.

    entries: of each of them.
    params: the arrays of all, by the name that the first module which has one calls it; behind the
        number of that module and a slash, where it is not the first of all.
    weights: for each, which of the params its entry takes behind its inputs, or, where `prepares`,
        which of what is prepared of them.
    """

    module: Any
    entries: tuple[Entry, ...]
    params: dict[str, Array]
    weights: tuple[tuple[int, ...], ...]
    prepares: bool


def join_variants(lowered: Sequence[LoweredModule]) -> Joined:
    """One module of several; of one it is that, with an entry of another name."""
    store = _Store()
    operands = [store.add(number, module) for number, module in enumerate(lowered)]
    functions: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    entries = []
    prepares = any(operand.prepare is not None for operand, _ in store.operands)
    if not prepares:
        places = {name: place for place, name in enumerate(store.params)}
        sources = [operand.sources[0] for operand, _ in store.operands]
        operands = [tuple(places[sources[place]] for place in own) for own in operands]
    for number, (module, own) in enumerate(zip(lowered, operands, strict=True)):
        entries.append(_copy(module.module, f"{number}_{binding(own)}", functions, variables))
    builder = relax.BlockBuilder(
        tvm.IRModule({variables[name]: function for name, function in functions.items()})
    )

    def function_of(prepare: Prepare) -> Any:
        return variables[content_name(prepare.name, prepare.made_by)]

    add_prepare(builder, store.params, store.operands, function_of)
    return Joined(builder.get(), tuple(entries), store.params, tuple(operands), prepares)


class _Store:
    """The arrays of all modules, and what their entries take."""

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.operands: list[tuple[Operand, Any]] = []
        self._contents: dict[Content, str] = {}
        self._places: dict[Operand, int] = {}

    def add(self, number: int, lowered: LoweredModule) -> tuple[int, ...]:
        """Add those of one module; returns which of all operands its entry takes."""
        own = {name: self._stored(number, name, a) for name, a in lowered.params.items()}
        count = len(lowered.operands)
        variables = lowered.module[ENTRY].params[-count:] if count else []
        places = []
        for operand, var in zip(lowered.operands, variables, strict=True):
            shared = Operand(tuple(own[name] for name in operand.sources), operand.prepare)
            place = self._places.setdefault(shared, len(self.operands))
            if place == len(self.operands):
                self.operands.append((shared, var.ty))
            places.append(place)
        return tuple(places)

    def _stored(self, number: int, name: str, array: Array) -> str:
        own = f"{number}/{name}" if number else name
        name = self._contents.setdefault(content_of(array), own)
        self.params.setdefault(name, array)
        return name


def _copy(module: Any, suffix: str, functions: dict[str, Any], variables: dict[str, Any]) -> Entry:
    """Add the functions of a module but for `PREPARE`; those not named by content anew."""
    own: dict[str, Any] = {}
    for var, function in module.functions_items():
        by_content = MADE_BY in (function.attrs or {})
        name = var.name_hint if by_content else f"{var.name_hint}_{suffix}"
        if name not in variables:
            variables[name] = tvm.ir.GlobalVar(name)
            _update_type(variables[name], var.ty)
        own[var.name_hint] = variables[name]

    def moved(var: Any) -> Any:
        return own[var.name_hint]

    for var, function in module.functions_items():
        if var.name_hint == PREPARE:
            continue
        name = moved(var).name_hint
        if isinstance(function, relax.Function):
            function = tvm_ffi.structural_map(function, (tvm.ir.GlobalVar, moved))
            if "global_symbol" in (function.attrs or {}):
                function = function.with_attr("global_symbol", name)
        functions[name] = function
    return Entry(f"{ENTRY}_{suffix}", f"{EARLY}_{suffix}")
