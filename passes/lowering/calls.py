"""The kernel calls of a finished module in execution order, and what each of them reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from nmcompile.passes.lowering.batch.split import EARLY
from nmcompile.passes.lowering.fallback import is_kernel
from nmcompile.passes.lowering.view import Expr, is_call_of

Source = int | str
"""The position of a call, or the name of an input."""


@dataclass(frozen=True)
class FinishedCall:
    """A call of a TIR function.

    symbol: the function's name.
    number: of a kernel of ours, its place among `LoweredModule.calls`, which lists the early part
        before the rest; else None.
    reads: positions of the calls, and names of the model's inputs, whose results it reads, as they
        are or through views of their memory; weights are not among them.
    shape: of what it writes, as that lies in memory.
    makes: names of the model's outputs that it writes.
    """

    symbol: str
    number: int | None
    reads: tuple[Source, ...]
    shape: tuple[int, ...]
    makes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """Names of the functions that compute a model for one shape.

    early: of the function for one group of images, where there is one.
    """

    main: str = "main"
    early: str = EARLY


def finished_calls(
    module: Any, inputs: Sequence[str], outputs: Sequence[str], entry: Entry = Entry()
) -> tuple[FinishedCall, ...]:
    """The calls of an entry function, those of the early part once for each group of images.

    Args:
        module: after `Backend.finish`.
        inputs: names of its first parameters; the others are weights.
        outputs: names of what it returns.
        entry: the functions; the default is of a module of one shape.
    """
    return _Reader(module, entry).read(inputs, outputs)


class _Reader:
    """Follows values through the functions of a module."""

    def __init__(self, module: Any, entry: Entry) -> None:
        self._entry = entry
        self._bodies = {
            var.name_hint: func
            for var, func in module.functions_items()
            if isinstance(func, relax.Function) and var.name_hint in (entry.main, entry.early)
        }
        early = self._bodies.get(entry.early)
        kernels = [] if early is None else [s for s in _symbols(early) if is_kernel(s)]
        self._numbers = {entry.early: 0, entry.main: len(kernels)}
        self._calls: list[FinishedCall] = []

    def read(self, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[FinishedCall, ...]:
        result = self._follow(self._entry.main, [{name} for name in inputs])
        fields = result if isinstance(result, list) else [result]
        made: dict[int, list[str]] = {}
        for name, sources in zip(outputs, fields, strict=True):
            for source in sources:
                if isinstance(source, int):
                    made.setdefault(source, []).append(name)
        return tuple(
            FinishedCall(call.symbol, call.number, call.reads, call.shape, tuple(made.get(i, ())))
            for i, call in enumerate(self._calls)
        )

    def _follow(
        self, name: str, arguments: Sequence[set[Source]]
    ) -> set[Source] | list[set[Source]]:
        """Add the calls of a function; returns where its result, or each of several, comes from."""
        function, number = self._bodies[name], self._numbers[name]
        tuples: dict[Expr, Expr] = {}
        known: dict[Expr, set[Source]] = dict(
            zip(function.params, arguments, strict=False)  # weights come from nowhere
        )
        for block in function.body.blocks:
            for binding in block.bindings:
                value = binding.value
                symbol = _symbol(value)
                if symbol:
                    ours = is_kernel(symbol)
                    reads = _together(known, value)
                    place = len(self._calls)
                    self._calls.append(
                        FinishedCall(
                            symbol, number if ours else None, _ordered(reads), _written(binding.var)
                        )
                    )
                    number += ours
                    known[binding.var] = {place}
                elif is_call_of(value, self._entry.early):
                    inner = self._follow(
                        self._entry.early, [_together(known, a) for a in value.args]
                    )
                    known[binding.var] = inner if isinstance(inner, set) else set().union(*inner)
                else:
                    if isinstance(value, relax.Tuple):
                        tuples[binding.var] = value
                    known[binding.var] = _together(known, value)
        result = tuples.get(function.body.body, function.body.body)
        if isinstance(result, relax.Tuple):
            return [_together(known, field) for field in result.fields]
        if isinstance(result.ty, relax.TupleType):
            return [_together(known, result)] * len(result.ty.fields)
        return _together(known, result)


def _together(known: dict[Expr, set[Source]], value: Expr) -> set[Source]:
    """Where all that an expression uses comes from."""
    found: set[Source] = set()
    for var in relax.analysis.free_vars(value):
        found |= known.get(var, set())
    return found


def _ordered(sources: Iterable[Source]) -> tuple[Source, ...]:
    return tuple(sorted(sources, key=lambda source: (isinstance(source, int), source)))


def _symbols(function: Any) -> list[str]:
    return [
        symbol
        for block in function.body.blocks
        for binding in block.bindings
        if (symbol := _symbol(binding.value))
    ]


def _symbol(value: Expr) -> str:
    """The TIR function that an expression calls, or ""."""
    if not isinstance(value, relax.Call):
        return ""
    called = str(getattr(value.op, "name", ""))
    if called not in ("relax.call_tir", "relax.call_tir_inplace"):
        return ""
    return str(value.args[0].name_hint)


def _written(var: Expr) -> tuple[int, ...]:
    """Of several outputs the last one counts: the others are scratch memory."""
    ty = var.ty.fields[-1] if isinstance(var.ty, relax.TupleType) else var.ty
    return tuple(int(extent) for extent in ty.shape)
