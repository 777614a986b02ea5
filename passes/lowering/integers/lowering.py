"""Lower for integer kernels, which read and write u8 in NHWC.

A quantised value has up to three forms, each made when something first needs it and then kept:

- plain: as in the model, NCHW, u8 or s8. What has no integer kernel reads and writes it.
- bytes: u8, four dimensions as (N, H, W, C), others as in the model; signed values plus 128.
- rows, of four dimensions: u8 in the model's order, as matrix products read and write it.

Real numbers are as in the model, float32 in NCHW; `dequantize` is computed where something needs
its real numbers, and not where a kernel reads the integers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from nmcompile.kernels.integers import Dequantise, Gate, Integers, Quantise, Sum, Table
from nmcompile.kernels.problem import Problem
from nmcompile.kernels.spec import Attention, GlobalAverage, LayerNorm, Linear
from nmcompile.passes.lowering.integers.group import IntegerGroup
from nmcompile.passes.lowering.integers.match import ROUNDED, IntegerMatcher
from nmcompile.passes.lowering.integers.moves import Joined
from nmcompile.passes.lowering.integers.values import SIGN, Quantisation
from nmcompile.passes.lowering.kernels import Lowering
from nmcompile.passes.lowering.matching.match import Group, Matcher
from nmcompile.passes.lowering.view import Expr, shape_of

Shape = tuple[int, ...]
TO_LINES, TO_PLANES = (0, 2, 3, 1), (0, 3, 1, 2)


def bytes_shape(shape: Shape) -> Shape:
    """The shape of a value's bytes."""
    return tuple(shape[axis] for axis in TO_LINES) if len(shape) == 4 else shape


class IntegerLowering(Lowering):
    """See the module."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bytes: dict[Expr, Expr] = {}
        self._rows: dict[Expr, Expr] = {}
        self._later: dict[Expr, Expr] = {}  # dequantize, until something needs the real numbers
        self._matcher: IntegerMatcher  # of the function that is being rewritten

    # Kernels.

    def _matchers(self) -> list[Matcher]:
        early = [self._source[var] for var in self._early_vars]
        return [IntegerMatcher(function) for function in (*early, self._function)]

    def _rewrite(self, function: Any, matcher: Matcher) -> tuple[list[Expr], Expr]:
        assert isinstance(matcher, IntegerMatcher)
        self._matcher = matcher
        return super()._rewrite(function, matcher)

    def _problem(self, group: Group) -> Problem:
        if not isinstance(group, IntegerGroup):
            return super()._problem(group)
        detection = self._pattern_of(group) if group.weight is not None else None
        weight = group.weight if group.table is None else group.table
        return Problem(
            group.spec, weight=weight, detection=detection, dtype="int8", integers=group.integers
        )

    def operand(self, group: Group, value: Expr) -> Expr:
        """The bytes, in the shape that the kernel reads."""
        if not isinstance(group, IntegerGroup):
            return self.substitute(value)
        if group.op in ROUNDED:
            return self.substitute(value)
        meaning = group.source if value.same_as(group.x) else group.added
        if meaning is None:
            return self._shaped(self._held(self.substitute(value)), self._read(group, value))
        form = self.rows_of if self._in_rows(group) else self.bytes_of
        return self._shaped(form(value, meaning), self._read(group, value))

    def result_type(self, group: Group) -> Any:
        """The bytes of what the operator computes, or its real numbers in the same order."""
        if not isinstance(group, IntegerGroup):
            return super().result_type(group)
        return relax.TensorType(
            self._written(group), "float32" if group.target is None else "uint8"
        )

    def keep(self, group: Group, result: Expr) -> None:
        """Keep the bytes, or the real numbers as in the model."""
        if not isinstance(group, IntegerGroup):
            super().keep(group, result)
            return
        shape = shape_of(group.out)
        assert shape is not None
        rows = len(shape) == 4 and self._in_rows(group)
        made = self._shaped(self._emit(result), shape if rows else bytes_shape(shape))
        if group.target is not None:
            (self._rows if rows else self._bytes)[group.out] = made
            return
        if len(shape) == 4 and not rows:
            made = self._emit(relax.op.permute_dims(made, TO_PLANES))
        self._values[group.out] = made

    @staticmethod
    def _written(group: IntegerGroup) -> Shape:
        """The shape of what a kernel writes."""
        spec, shape = group.spec, shape_of(group.out)
        assert shape is not None
        if isinstance(spec, Table | Sum):
            return (spec.count,)
        if isinstance(spec, Gate):
            return (spec.batch, spec.pixels, spec.channels)
        if isinstance(spec, GlobalAverage):
            return spec.out_shape
        if isinstance(spec, Linear):
            return spec.shapes[1]
        if isinstance(spec, Attention):
            return spec.out_shape
        if isinstance(spec, LayerNorm):
            return spec.shape
        if isinstance(spec, Quantise | Dequantise):
            planes = (spec.batch, spec.channels, spec.height, spec.width)
            return planes if isinstance(spec, Dequantise) else bytes_shape(planes)
        return bytes_shape(shape)

    @classmethod
    def _read(cls, group: IntegerGroup, value: Expr) -> Shape:
        """The shape in which a kernel reads a value."""
        spec, shape = group.spec, shape_of(value)
        assert shape is not None
        if isinstance(spec, Gate) and not value.same_as(group.x):
            return (spec.batch, spec.channels)
        if isinstance(spec, Table | Sum | Gate):
            return cls._written(group)
        if isinstance(spec, Linear):
            return spec.shapes[not value.same_as(group.x)]
        if isinstance(spec, Quantise):
            return spec.batch, spec.channels, spec.height, spec.width
        return bytes_shape(shape)

    def _in_rows(self, group: IntegerGroup) -> bool:
        """Whether a kernel reads and writes rows; value by value in the order that is there."""
        found = group.x in self._rows and group.x not in self._bytes
        return group.rows or (found and isinstance(group.spec, Table | Sum))

    def _shaped(self, value: Expr, shape: Shape) -> Expr:
        """The same elements in another shape."""
        if shape_of(value) == shape:
            return value
        return self._emit(relax.op.reshape(value, shape))

    # Other operators.

    def lower_other(self, var: Expr, value: Expr) -> None:
        """Plain, where anything reads it; what has bytes too waits for who asks."""
        if var not in self._matcher.live:
            return
        if self._matcher.is_real(var) or self._matcher.joined(var) or self._matcher.moved(var):
            self._later[var] = value
        else:
            super().lower_other(var, value)

    def _join(self, joined: Joined) -> Expr:
        """The bytes of a concatenation, each part rounded as the whole is."""
        parts = []
        for part in joined.parts:
            held = self.bytes_of(part.var, part.meaning)
            if part.meaning != joined.target:
                shape = shape_of(part.var) or ()
                table = joined.target.stored(part.meaning.numbers)
                group = IntegerGroup(
                    "table", Table(math.prod(shape)), part.var, part.var,
                    source=part.meaning, target=joined.target, table=table,
                )  # fmt: skip
                made = self._emit(self._kernel(group))
                held = self._shaped(made, bytes_shape(shape))
            parts.append(held)
        rank = len(shape_of(joined.parts[0].var) or ())
        axis = TO_LINES.index(joined.axis) if rank == 4 else joined.axis
        return self._emit(relax.op.concat(parts, axis))

    # Forms.

    def known(self, value: Expr) -> Expr | None:
        """The plain form."""
        if value in self._values:
            return self._values[value]
        if value in self._later and self._matcher.is_real(value):
            self._values[value] = self._dequantised(self._later[value])
        elif value in self._later or value in self._bytes or value in self._rows:
            self._values[value] = self._plain(value)
        return self._values.get(value)

    def bytes_of(self, value: Expr, meaning: Quantisation) -> Expr:
        """The bytes of a quantised value."""
        if value in self._bytes:
            return self._bytes[value]
        joined = self._matcher.joined(value) if value in self._later else None
        moved = self._matcher.moved(value) if value in self._later else None
        shape = shape_of(value) or ()
        if joined is not None:
            held = self._join(joined)
        elif moved is not None and moved.keeps_order(shape):
            held = self._shaped(self.bytes_of(moved.var, meaning), bytes_shape(shape))
        elif moved is not None and moved.permutes(TO_PLANES):
            held = self.rows_of(moved.var, meaning)
        else:
            held = self._in_order(value, meaning)
            if len(shape) == 4:
                held = self._permuted(held, shape, TO_LINES)
        self._bytes[value] = held
        return held

    def rows_of(self, value: Expr, meaning: Quantisation) -> Expr:
        """The rows of a quantised value: of other than four dimensions they are its bytes."""
        shape = shape_of(value) or ()
        if len(shape) != 4:
            return self.bytes_of(value, meaning)
        if value not in self._rows:
            moved = self._matcher.moved(value) if value in self._later else None
            if moved is not None and moved.permutes(TO_LINES):
                self._rows[value] = self.bytes_of(moved.var, meaning)
            elif moved is not None and moved.reshapes:
                self._rows[value] = self._shaped(self.rows_of(moved.var, meaning), shape)
            elif value in self._bytes or self._matcher.joined(value) is not None:
                held = self.bytes_of(value, meaning)
                self._rows[value] = self._permuted(held, bytes_shape(shape), TO_PLANES)
            else:
                self._rows[value] = self._in_order(value, meaning)
        return self._rows[value]

    def _in_order(self, value: Expr, meaning: Quantisation) -> Expr:
        """The u8 in the model's order, where there are no bytes."""
        if value in self._rows:
            return self._rows[value]
        held = self.substitute(value)
        return self._shifted(held, SIGN, "uint8") if meaning.signed else held

    def _permuted(self, value: Expr, shape: Shape, axes: Shape) -> Expr:
        """Four dimensions with their axes in another order; a view where the elements stay."""
        moving = [axis for axis in axes if shape[axis] != 1]
        if moving == sorted(moving):
            return self._shaped(value, tuple(shape[axis] for axis in axes))
        return self._emit(relax.op.permute_dims(value, axes))

    def _plain(self, value: Expr) -> Expr:
        """The plain form of what is bytes or rows, or is to be."""
        made = value in self._bytes or value in self._rows
        moved = None if made else self._matcher.moved(value)
        if moved is not None:
            call = moved.call
            arguments = [self.substitute(moved.var), *map(self.substitute, call.args[1:])]
            return self._emit(relax.Call(call.op, arguments, call.attrs, call.ty_args))
        meaning = self._matcher.meaning(value)
        assert meaning is not None
        held = self.rows_of(value, meaning)
        return self._shifted(held, -SIGN, "int8") if meaning.signed else held

    def _shifted(self, value: Expr, by: int, dtype: str) -> Expr:
        whole = relax.op.add(relax.op.astype(value, "int32"), relax.const(np.int32(by)))
        return self._emit(relax.op.astype(self._emit(whole), dtype))

    def _dequantised(self, call: Expr) -> Expr:
        """The real numbers of a `dequantize`."""
        value, shape = call.args[0], shape_of(call) or ()
        meaning = self._matcher.meaning(value)
        if value in self._bytes and meaning is not None and len(shape) == 4:
            integers = Integers(meaning.zero, np.array([meaning.scale], np.float32))
            group = IntegerGroup(
                "dequantise", Dequantise(*shape), value, value, source=meaning, integers=integers
            )
            return self._emit(self._kernel(group))
        arguments = [self.substitute(argument) for argument in call.args]
        return self._emit(relax.Call(call.op, arguments, call.attrs, call.ty_args))

    def _emit(self, value: Expr) -> Expr:
        return self._builder.emit(value)
