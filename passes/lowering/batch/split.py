"""Run the early part of a network on one group of images after the other.

The activations of early layers grow with the batch and leave the caches, where those of a few
images stay in them; the weights of late layers are read once per call, however many images share
it. So the function is cut at one value: what comes before becomes a function of its own for a
smaller batch, called once for each group, and what comes behind takes the joined results.

    main(x) = late(early(x))  ->  main(x) = late(join(early(x[0:g]), early(x[g:2g]), ...))

`lower_batch_rules` says what may come before a cut, `lower_batch_cost` where it pays. Every layer
is still lowered once, and its weights are kept once.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax

from nmcompile.kernels.avx512.join import NAME as JOIN
from nmcompile.kernels.avx512.join import emit_join
from nmcompile.passes.lowering.batch.cost import Split, choose_split
from nmcompile.passes.lowering.batch.rules import Early
from nmcompile.passes.lowering.view import Expr, FunctionView, shape_of

EARLY = "images"  # the function that computes one group of images
SPLIT_OPS = ("memory.view", "memory.ensure_zero_offset", "call", JOIN)  # names of what it adds
ALIGNMENT = 64  # bytes; kernels want their tensors to begin on such a boundary


def split_batch(module: Any) -> Any:
    """The same module, its early part as a function `EARLY` where that makes it faster.

    Args:
        module: a simplified module with static shapes.
    """
    if not isinstance(module["main"].body, relax.SeqExpr):
        return module  # lower_kernels refuses it, and says why
    split = choose_split(module["main"])
    return module if split is None else _Splitter(module, split).run()


class _Splitter:
    """Writes the two functions of one split."""

    def __init__(self, module: Any, split: Split) -> None:
        self._module, self._split = module, split
        self._function = module["main"]
        self._view = FunctionView(self._function)
        early = Early(self._function, self._view, split.batch)
        self._members = early.members(split.cut)
        used = {operand for var in self._members for operand in self._view.operands(var)}
        self._inputs = [param for param in self._function.params if param in used]
        self._builder = relax.BlockBuilder(module)

    def run(self) -> Any:
        builder, split = self._builder, self._split
        callee = self._early()
        groups = split.batch // split.group
        shape = shape_of(split.cut)
        assert shape is not None
        join = builder.add_func(emit_join(JOIN, groups, (split.group, *shape[1:])), JOIN)
        old = self._function
        builder.begin_scope(list(old.params))
        builder._begin_dataflow_block()
        parts = []
        for index in range(groups):
            arguments = [self._part(x, index) for x in self._inputs]
            parts.append(builder.emit(relax.Call(callee, arguments)))
        values = {split.cut: builder.emit(relax.call_tir(join, relax.Tuple(parts), split.cut.ty))}
        done = set(self._members)
        for var, value in self._view.definitions.items():
            if var not in done:
                values[var] = builder.emit(_substitute(value, values))
        output = builder.emit_output(_substitute(old.body.body, values))
        blocks = [builder._end_block()]
        builder.end_scope()
        body = builder.normalize(relax.SeqExpr(blocks, output))
        function = relax.Function(list(old.params), body, None, is_pure=True)
        if old.attrs is not None:
            function = function.with_attrs(old.attrs)
        builder.update_func(self._module.get_global_var("main"), function)
        return builder.get()

    def _early(self) -> Any:
        """Add the function of one group of images."""
        builder = self._builder
        params = [relax.Var(x.name, self._type(x)) for x in self._inputs]
        values: dict[Expr, Expr] = dict(zip(self._inputs, params, strict=True))
        with builder.function(EARLY, params, private=True):
            with builder.dataflow():
                for var in self._members:
                    values[var] = builder.emit(_substitute(self._operator(var), values))
                output = builder.emit_output(values[self._split.cut])
            builder.emit_func_output(output)
        return builder.get().get_global_var(EARLY)

    def _operator(self, var: Expr) -> Expr:
        """The operator of a value; TIR functions, which have fixed shapes, as what they compute."""
        spelled = {"maximum": relax.op.maximum, "minimum": relax.op.minimum}
        value = self._view.definitions[var]
        if str(value.op.name) == "relax.call_tir":
            return spelled[self._view.op(var)](*self._view.args(var))
        return value

    def _type(self, expr: Expr) -> Any:
        shape = shape_of(expr)
        assert shape is not None
        return relax.TensorType((self._split.group, *shape[1:]), str(expr.ty.dtype))

    def _part(self, x: Expr, index: int) -> Expr:
        """One group of an input's images: the same memory where kernels may start there."""
        shape, group = shape_of(x), self._split.group
        assert shape is not None
        part = (group, *shape[1:])
        stride = 4 * math.prod(part)
        if stride % ALIGNMENT:
            first = index * group
            return self._builder.emit(relax.op.strided_slice(x, [0], [first], [first + group]))
        offset = relax.prim_value(index * stride)
        view = relax.op.memory.view(x, part, "float32", relative_byte_offset=offset)
        # Kernels take no offsets: this adds it to the address.
        return self._builder.emit(relax.op.memory.ensure_zero_offset(self._builder.emit(view)))


def _substitute(value: Expr, values: dict[Expr, Expr]) -> Expr:
    """An expression over new variables."""
    if value in values:
        return values[value]
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_substitute(v, values) for v in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_substitute(value.tuple_value, values), value.index)
    if isinstance(value, relax.Call):
        arguments = [_substitute(a, values) for a in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)
    return value
