"""Find attention: softmax(q k^T, scaled and masked) v, as torch and ONNX exports spell it.

It is looked for from a softmax over the last axis. Between the product of queries and keys and the
softmax there may be

1. a product with a number, or a quotient by one, of the scores, of q or of k;
2. sums with masks and biases that broadcast to the scores;
3. a selection by truth values between the scores and a number below 0;

and behind the softmax a selection of zeros for queries all of whose scores are -inf. Reshapes,
transpositions and slices around q, k, v and the result are not computed: the kernel reads and
writes where elements lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from nmcompile.kernels.spec import Attention, Mask, Strides
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.matching.strided import Shape, Strided
from nmcompile.passes.lowering.matching.traced import (
    Reshape,
    Traced,
    axes_of,
    reshapes,
    scaling_of,
    trace,
)
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, scalar, shape_of


@dataclass(frozen=True)
class _Masking:
    """A mask at the place where the scores have the shape `at`.

    sides: of truth values, what stands where they hold and where they do not: 0 for scores that
        stay.
    """

    value: Expr
    at: Shape
    sides: tuple[float, float] | None = None


@dataclass
class _Scores:
    """The way back from a softmax to the product of queries and keys."""

    product: Expr
    factor: float
    masks: list[_Masking] = field(default_factory=list)
    passed: list[Expr] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)


@dataclass(frozen=True)
class _Placing:
    """Where operands lie, as (batch, heads, rows, columns) of the products, and the result.

    chain: from the second product to the tensor that is written.
    """

    q: tuple[Traced, Strided]
    k: tuple[Traced, Strided]
    v: tuple[Traced, Strided]
    masks: list[tuple[Traced, Strided]]
    chain: list[Expr]
    out: Strided

    @property
    def spared(self) -> int:
        """Operators that only move elements, and that nothing has to compute."""
        operands = (self.q, self.k, self.v, *self.masks)
        return sum(len(traced.passed) for traced, _ in operands) + len(self.chain)


class AttentionMatcher:
    """Finds the attention around a softmax."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def match(self, softmax: Expr) -> Found | None:
        """The attention whose weights a softmax computes, or None."""
        view = self._view
        (given,), shape = view.args(softmax), shape_of(softmax)
        if shape is None or len(shape) < 3:
            return None
        if int(view.definitions[softmax].attrs.axis) % len(shape) != len(shape) - 1:
            return None
        scores = self._scores(given)
        if scores is None:
            return None
        inner, weights, hidden = [*scores.passed, softmax], softmax, self._zeros(given, softmax)
        if hidden is not None:
            inner += hidden
            weights = hidden[-1]
        product = view.only_user(weights)
        while product is not None and reshapes(view, product):
            inner.append(product)
            weights, product = product, view.only_user(product)
        if product is None or view.op(product) != "matmul":
            return None
        if not view.args(product)[0].same_as(weights) or shape_of(product) is None:
            return None
        inner.append(product)
        return self._settle(scores, product, inner, shape, zero_hidden=hidden is not None)

    # Back to the first product.

    def _scores(self, value: Expr) -> _Scores | None:
        """How scores were made from a product; None if they were not."""
        view, shape = self._view, shape_of(value)
        if shape is None or len(shape) < 2 or value in view.taken or value in view.outputs:
            return None
        if view.op(value) == "matmul":
            return _Scores(value, 1.0, [], [value], [shape])
        found: _Scores | None = None
        if reshapes(view, value):
            found = self._scores(view.args(value)[0])
        elif (scaling := scaling_of(view, value)) is not None:
            found = self._scores(scaling[0])
            if found is None or found.masks:
                return None
            found.factor *= scaling[1]
        elif view.op(value) == "add":
            found = self._added(value, shape)
        elif view.op(value) == "where":
            found = self._selected(value, shape)
        if found is not None:
            found.passed.append(value)
            found.shapes.append(shape)
        return found

    def _added(self, value: Expr, shape: Shape) -> _Scores | None:
        left, right = self._view.args(value)
        for inner, mask in ((left, right), (right, left)):
            if shape_of(inner) != shape or shape_of(mask) is None:
                continue
            found = self._scores(inner)
            if found is not None:
                found.masks.append(_Masking(mask, shape))
                return found
        return None

    def _selected(self, value: Expr, shape: Shape) -> _Scores | None:
        """Scores where a truth value says so, a number below 0 elsewhere."""
        condition, first, second = self._view.args(value)
        for inner, fill, seen in ((first, second, True), (second, first, False)):
            number = scalar(fill)
            if number is None or not number < 0 or shape_of(inner) != shape:
                continue
            found = self._scores(inner)
            if found is None or shape_of(condition) is None:
                return None
            sides = (0.0, number) if seen else (number, 0.0)
            found.masks.append(_Masking(condition, shape, sides))
            return found
        return None

    # Forward: zeros for queries that see nothing.

    def _zeros(self, scores: Expr, softmax: Expr) -> list[Expr] | None:
        """The variables that select zeros where all scores are -inf, the result last."""
        view = self._view
        user = view.only_user(softmax)
        if user is None or view.op(user) != "where":
            return None
        condition, zero, weights = view.args(user)
        zeros = constant(zero)
        if not weights.same_as(softmax) or zeros is None or zeros.any():
            return None
        passed = self._nothing_seen(scores, condition)
        return None if passed is None else [*passed, user]

    def _nothing_seen(self, scores: Expr, condition: Expr) -> list[Expr] | None:
        """The variables of "all scores are -inf" by a maximum of truth values, or by counting."""
        for names in (_BY_MAXIMUM, _BY_COUNT):
            passed, value = list[Expr](), condition
            for name in names:
                if self._view.op(value) != name or not self._is_such(value, name):
                    break
                passed.append(value)
                arguments = self._view.args(value)
                value = arguments[0]
            else:
                if value.same_as(scores):
                    return passed
        return None

    def _is_such(self, value: Expr, name: str) -> bool:
        """Whether an operator of `_nothing_seen` has the operands and attributes that it needs."""
        arguments, attrs = self._view.args(value), self._view.definitions[value].attrs
        if name in ("max", "sum"):
            rank = len(shape_of(arguments[0]) or ())
            axes = [int(axis) % rank for axis in attrs.axis or ()]
            return axes == [rank - 1] and bool(attrs.keepdims)
        if name == "where":
            return [scalar(argument) for argument in arguments[1:]] == [0.0, 1.0]
        if name == "equal":
            of_scores = str(arguments[0].ty.dtype) == "float32" and shape_of(arguments[0])
            number = scalar(arguments[1])
            last = (shape_of(value) or (0,))[-1] == 1
            return bool(of_scores) and number == (0.0 if last and number == 0 else -math.inf)
        return True

    # Where everything lies.

    def _settle(
        self,
        scores: _Scores,
        product: Expr,
        inner: list[Expr],
        shape: Shape,
        zero_hidden: bool,
    ) -> Found | None:
        """The attention, for the first pair of batch and heads for which all operands are views."""
        view, (queries, keys) = self._view, shape[-2:]
        q, k = view.args(scores.product)
        v, made = view.args(product)[1], shape_of(product)
        size, value_size = (shape_of(q) or (0,))[-1], (made or (0,))[-1]
        if made is None or any(len(shape_of(x) or ()) < 2 for x in (q, k, v)) or not size:
            return None
        if any(str(x.ty.dtype) != "float32" for x in (q, k, v)):
            return None
        if (shape_of(scores.product) or ())[-2:] != (queries, keys) or made[-2] != queries:
            return None
        pairs = math.prod(shape[:-2])
        if math.prod(made[:-2]) != pairs:
            return None
        sizes: dict[str, Shape] = {"q": (queries, size), "k": (size, keys), "v": (keys, value_size)}
        chains = list(self._results(product))
        best, most = None, -1
        for lead in self._leads(pairs, [*scores.shapes, made, *(shape_of(c[-1]) for c in chains)]):
            placing = self._placed(scores, (q, k, v), lead, sizes, chains)
            if placing is not None and placing.spared > most:
                best, most = placing, placing.spared
        return None if best is None else self._made(scores, best, inner, zero_hidden)

    def _placed(
        self,
        scores: _Scores,
        operands: tuple[Expr, Expr, Expr],
        lead: Shape,
        sizes: dict[str, Shape],
        chains: list[list[Expr]],
    ) -> _Placing | None:
        """Where everything lies if the axes in front are batch and heads of these extents."""
        q, k, v = (
            self._operand(operand, (*lead, *extents), scaled=name != "v")
            for (name, extents), operand in zip(sizes.items(), operands, strict=True)
        )
        if q is None or k is None or v is None:
            return None
        (queries, _), (keys, value_size) = sizes["q"], sizes["v"]
        masks = []
        for mask in scores.masks:
            one = self._mask(mask, (*lead, queries, keys))
            if one is None:
                return None
            masks.append(one)
        for chain in chains:
            out = self._written(chain, (*lead, queries, value_size))
            if out is not None and out.strides[-1] == 1:
                return _Placing(q, k, v, masks, chain, out)
        return None

    @staticmethod
    def _leads(pairs: int, shapes: list[Shape | None]) -> Iterator[Shape]:
        """Pairs (batch, heads) that the axes before the last two may be taken for."""
        leads = list[Shape]()
        for shape in shapes:
            front = tuple(extent for extent in (shape or ())[:-2] if extent != 1)
            for cut in range(len(front)):
                leads.append((math.prod(front[:cut]), math.prod(front[cut:])))
        leads.append((1, pairs))
        return iter(dict.fromkeys(lead for lead in leads if math.prod(lead) == pairs))

    def _operand(
        self, operand: Expr, wanted: Shape, *, scaled: bool
    ) -> tuple[Traced, Strided] | None:
        """The earliest tensor of which an operand is a view of the wanted shape, and that."""
        shape = shape_of(operand) or ()
        for traced in trace(self._view, operand, scaled=scaled):
            if math.prod(shape) == math.prod(wanted):
                found = traced.as_view(Reshape(wanted))
            else:
                held = traced.as_view()
                found = None if held is None else held.broadcast(wanted)
            if found is not None:
                return traced, found
        return None

    def _mask(self, mask: _Masking, wanted: Shape) -> tuple[Traced, Strided] | None:
        """The earliest tensor of which a mask is a view of the scores' shape, and that."""
        if str(mask.value.ty.dtype) != ("float32" if mask.sides is None else "bool"):
            return None
        for traced in trace(self._view, mask.value, scaled=False):
            held = traced.as_view()
            held = None if held is None else held.broadcast(mask.at)
            found = None if held is None else held.reshaped(wanted)
            if found is not None and found.strides[-1] in (0, 1):
                return traced, found
        return None

    # Behind the second product.

    def _results(self, product: Expr) -> Iterator[list[Expr]]:
        """Chains of operators behind the product that only move elements, the longest first."""
        chain, last = [product], product
        while True:
            user = self._view.only_user(last)
            if user is None or not (
                reshapes(self._view, user) or self._view.op(user) == "permute_dims"
            ):
                break
            chain.append(user)
            last = user
        # Joining rows is left to the product behind, which takes it together with parting them.
        while len(chain) > 1 and self._view.op(chain[-1]) == "reshape":
            ends = [(shape_of(var) or (0,))[-1] for var in chain[-2:]]
            if ends[0] != ends[1]:
                break
            chain.pop()
        for length in range(len(chain), 0, -1):
            yield chain[:length]

    def _written(self, chain: list[Expr], wanted: Shape) -> Strided | None:
        """Where the elements of the product lie in the last tensor of a chain."""
        shape = shape_of(chain[-1])
        held: Strided | None = None if shape is None else Strided.whole(shape)
        waiting = False
        for var in reversed(chain[1:]):
            if reshapes(self._view, var):
                waiting = True
                continue
            before = shape_of(var)
            if held is None or before is None:
                return None
            held = held.reshaped(before) if waiting else held
            axes = axes_of(self._view, var)
            held = None if held is None else held.permuted(tuple(np.argsort(axes).tolist()))
            waiting = False
        return None if held is None else held.reshaped(wanted)

    # All of it.

    def _made(
        self, scores: _Scores, placing: _Placing, inner: list[Expr], zero_hidden: bool
    ) -> Found | None:
        operands: list[Expr] = []

        shapes: list[Shape] = []

        def placed(
            one: tuple[Traced, Strided],
            *,
            turned: bool = False,
            sides: tuple[float, float] | None = None,
        ) -> Strides:
            traced, view = one
            base = traced.base
            if sides is not None:
                held, ends = constant(base), tuple(map(np.float32, sides))
                base = (
                    relax.op.where(base, *map(relax.const, ends))
                    if held is None
                    else relax.const(np.where(held, *ends))
                )
            known = [base.same_as(operand) for operand in operands]
            if not any(known):
                operands.append(base)
                shapes.append(shape_of(traced.base) or ())
                known.append(True)
            batch, head, token, feature = view.strides
            if turned:
                token, feature = feature, token
            return Strides(known.index(True), view.offset, batch, head, token, feature)

        q, k, v, chain, out = placing.q, placing.k, placing.v, placing.chain, placing.out
        (batch, heads, queries, size), keys = q[1].shape, k[1].shape[-1]
        places = placed(q), placed(k, turned=True), placed(v)
        masked = tuple(
            Mask(placed(one, sides=mask.sides), mask.sides is not None)
            for mask, one in zip(scores.masks, placing.masks, strict=True)
        )
        shape = shape_of(chain[-1])
        assert shape is not None
        spec = Attention(
            batch, heads, queries, keys, size, v[1].shape[-1],
            scores.factor * q[0].factor * k[0].factor,
            tuple(shapes), *places,
            Strides(0, out.offset, *out.strides), shape, masked, zero_hidden,
        )  # fmt: skip
        core = {*inner, *chain}
        last = chain[-1]
        if not self._view.closed(core, last) or self._view.taken.intersection(core):
            return None
        passed = [var for one in (q, k, v, *placing.masks) for var in one[0].passed]
        return Found(spec, tuple(operands), self._alone(passed, core))

    def _alone(self, passed: list[Expr], core: set[Expr]) -> tuple[Expr, ...]:
        """The core and, of what was passed on the way to it, what nobody else reads; in order."""
        view, members = self._view, set(core)
        waiting = set(passed) - view.outputs - view.taken
        while True:
            free = [v for v in waiting - members if members.issuperset(view.users.get(v, ()))]
            if not free:
                return view.ordered(members)
            members.update(free)


_BY_MAXIMUM = ("logical_not", "astype", "max", "astype", "logical_not", "equal")
_BY_COUNT = ("equal", "sum", "where", "equal")
