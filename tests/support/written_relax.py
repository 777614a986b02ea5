"""Relax functions that are written down operator by operator while numpy computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
from tvm import relax

from nmcompile.kernels.spec import Attention, Strides
from nmcompile.passes.lowering.matching.match import Group, Matcher
from nmcompile.passes.lowering.view import constant

Array = npt.NDArray[Any]
Var = Any


class Written:
    """A function; `values` has the values of its variables, in float64."""

    def __init__(self) -> None:
        self.values: dict[Var, Array] = {}
        self._inputs: list[Var] = []
        self._bindings: list[Any] = []
        self._builder = relax.BlockBuilder()

    def given(self, array: Array) -> Var:
        """An input: float32, or truth values."""
        kind = "bool" if array.dtype == bool else "float32"
        var = relax.Var(f"x{len(self._inputs)}", relax.TensorType(array.shape, kind))
        self._inputs.append(var)
        self.values[var] = array
        return var

    def _made(self, call: Any, value: Array) -> Var:
        call = self._builder.normalize(call)
        var = relax.Var(f"v{len(self._bindings)}", call.ty)
        assert tuple(int(extent) for extent in var.ty.shape) == value.shape
        self._bindings.append(relax.VarBinding(var, call))
        self.values[var] = value
        return var

    def permuted(self, x: Var, axes: Sequence[int]) -> Var:
        """Axes in another order."""
        value = self.values[x].transpose(axes)
        return self._made(relax.op.permute_dims(x, list(axes)), value)

    def turned(self, x: Var) -> Var:
        """Rows and columns exchanged."""
        rank = self.values[x].ndim
        return self.permuted(x, (*range(rank - 2), rank - 1, rank - 2))

    def reshaped(self, x: Var, shape: tuple[int, ...]) -> Var:
        """The same elements in another shape."""
        return self._made(relax.op.reshape(x, shape), self.values[x].reshape(shape))

    def repeated(self, x: Var, shape: tuple[int, ...]) -> Var:
        """Broadcast to a shape."""
        value = np.broadcast_to(self.values[x], shape)
        return self._made(relax.op.broadcast_to(x, relax.ShapeExpr(shape)), value)

    def product(self, a: Var, b: Var) -> Var:
        """Of matrices."""
        return self._made(relax.op.matmul(a, b), self.values[a] @ self.values[b])

    def sum(self, a: Var, b: Var) -> Var:
        """Element by element."""
        return self._made(relax.op.add(a, b), self.values[a] + self.values[b])

    def scaled(self, x: Var, by: float) -> Var:
        """Times a number."""
        value = self.values[x] * by
        return self._made(relax.op.multiply(x, relax.const(np.float32(by))), value)

    def selected(self, condition: Var, x: Var, other: float) -> Var:
        """x where the condition holds, else a number."""
        value = np.where(self.values[condition], self.values[x], other)
        return self._made(relax.op.where(condition, x, relax.const(np.float32(other))), value)

    def zero_for_nan(self, x: Var) -> Var:
        """0 where x is no number."""
        none = np.isnan(self.values[x])
        condition = self._made(relax.op.isnan(x), none)
        zero = relax.const(np.float32(0))
        return self._made(relax.op.where(condition, zero, x), np.where(none, 0, self.values[x]))

    def softmax(self, x: Var, axis: int) -> Var:
        """Along one axis."""
        return self._made(relax.op.nn.softmax(x, axis), softmax(self.values[x], axis))

    def matcher(self, *results: Var) -> Matcher:
        """What is found in the function that returns these."""
        body = results[0] if len(results) == 1 else relax.Tuple(results)
        block = relax.DataflowBlock(self._bindings)
        return Matcher(relax.Function(self._inputs, relax.SeqExpr([block], body), body.ty))

    def attention(self, group: Group) -> Array:
        """What the kernel of an attention writes, from where its operands are said to lie."""
        spec = group.spec
        assert isinstance(spec, Attention)
        operands = [self._operand(operand) for operand in (group.x, *group.others)]
        assert tuple(operand.shape for operand in operands) == spec.operands
        q, k, v = (
            _view(operands[where.operand], where, spec.lead, extents)
            for where, extents in (
                (spec.q, (spec.queries, spec.size)),
                (spec.k, (spec.keys, spec.size)),
                (spec.v, (spec.keys, spec.value_size)),
            )
        )
        scores = q @ k.swapaxes(-1, -2) * spec.scale
        for mask in spec.masks:
            extents = (spec.queries, spec.keys)
            other = _view(operands[mask.where.operand], mask.where, spec.lead, extents)
            scores = np.where(other < 0, other, scores) if mask.hides else scores + other
        weights, out = softmax(scores, -1), np.full(spec.out_shape, np.nan)
        if spec.zero_hidden:
            weights = np.where((scores == -np.inf).all(-1, keepdims=True), 0, weights)
        _view(out, spec.out, spec.lead, (spec.queries, spec.value_size))[...] = weights @ v
        return out

    def _operand(self, operand: Any) -> Array:
        held = constant(operand)
        if held is not None:
            return held
        if operand in self.values:
            return self.values[operand]
        condition, *ends = operand.args  # a mask of truth values
        first, second = (float(end.value.numpy()) for end in ends)
        return np.where(self.values[condition], first, second)


def softmax(x: Array, axis: int) -> Array:
    """exp(x) over its sum along one axis."""
    with np.errstate(invalid="ignore"):
        values = np.exp(x - x.max(axis, keepdims=True))
        made: Array = values / values.sum(axis, keepdims=True)
    return made


def _view(memory: Array, where: Strides, lead: tuple[int, ...], extents: tuple[int, int]) -> Array:
    """Elements where they are said to lie in a tensor without gaps."""
    flat = memory if memory.flags.c_contiguous else np.ascontiguousarray(memory)
    flat, nbytes = flat.reshape(-1), flat.itemsize
    strides = [step * nbytes for step in (*where.lead, where.token, where.feature)]
    shape = (*lead, *extents)
    reach = sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True)) // nbytes
    assert 0 <= where.offset and where.offset + reach < flat.size
    return as_strided(flat[where.offset :], shape, strides)
