"""Find attention: softmax(q k^T, scaled and masked) v, as torch and ONNX exports spell it.

It is looked for from a softmax over the keys. Between the product of queries and keys and the
softmax there may be

1. a product with a number, or a quotient by one, of the scores, of q or of k;
2. sums with masks and biases that broadcast to the scores;
3. a selection by truth values between the scores and a number below 0;

and behind the softmax a selection of zeros for queries all of whose scores are -inf, which torch's
ONNX exporter spells as weights that are NaN. Each of the scores, the weights and the result may
have its rows and columns exchanged, as where images lie channels first: k q^T, softmax over the
rows, v^T w^T. Reshapes, transpositions, slices and repetitions around q, k, v and the result are
not computed: the kernel reads and writes where elements lie.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from nmcompile.kernels.spec import Attention, Mask, Strides
from nmcompile.passes.lowering.matching.found import Found, place_among
from nmcompile.passes.lowering.matching.placing import Placer, Placing, Product, View
from nmcompile.passes.lowering.matching.scores import Scores, ScoresReader, ordered, turns
from nmcompile.passes.lowering.matching.strided import Shape
from nmcompile.passes.lowering.matching.traced import reshapes
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of


class AttentionMatcher:
    """Finds the attention around a softmax."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view
        self._placer = Placer(view)

    def match(self, softmax: Expr) -> Found | None:
        """The attention whose weights a softmax computes, or None."""
        (given,), shape = self._view.args(softmax), shape_of(softmax)
        if shape is None or len(shape) < 3:
            return None
        behind = len(shape) - 1 - int(self._view.definitions[softmax].attrs.axis) % len(shape)
        if behind > 1:
            return None
        turned = behind == 1
        extents, pairs = ordered(shape[-2:], turned), math.prod(shape[:-2])
        reader = ScoresReader(self._view, extents)
        scores = reader.read(given, turned)
        if scores is None:
            return None
        inner, weights = [*scores.passed, softmax], softmax
        hidden = None if turned else reader.zeros(scores, softmax)
        if hidden is not None:
            inner += hidden
            weights = hidden[-1]
        product = self._product(weights, turned, extents, inner)
        if product is None:
            return None
        placing = self._placer.place(scores, product, extents, pairs)
        return None if placing is None else self._made(scores, placing, inner, hidden is not None)

    def _product(
        self, weights: Expr, turned: bool, extents: Shape, inner: list[Expr]
    ) -> Product | None:
        """The product of weights and values; adds it and what goes before it to `inner`."""
        view = self._view
        while (user := view.only_user(weights)) is not None:
            inner.append(user)
            if turns(view, user, ordered(extents, not turned)):
                turned = not turned
            elif not reshapes(view, user):
                break
            weights = user
        if user is None or view.op(user) != "matmul":
            return None
        operands, shape = view.args(user), shape_of(weights)
        right = operands[1].same_as(weights)
        # With one query or one key the elements are in either order.
        if shape is None or (right != turned and 1 not in extents):
            return None
        if shape[-2:] != ordered(extents, right) or operands[0].same_as(operands[1]):
            return None
        return Product(user, operands[0 if right else 1], turned=right)

    def _made(
        self, scores: Scores, placing: Placing, inner: list[Expr], zero_hidden: bool
    ) -> Found | None:
        operands: list[Expr] = []
        shapes: list[Shape] = []

        def placed(
            one: View, *, turned: bool = False, sides: tuple[float, float] | None = None
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
            place = place_among(operands, base)
            if place == len(shapes):
                shapes.append(shape_of(traced.base) or ())
            *lead, token, feature = view.strides
            if turned:
                token, feature = feature, token
            return Strides(place, view.offset, tuple(lead), token, feature)

        q, k, v, chain, out = placing.q, placing.k, placing.v, placing.chain, placing.out
        (queries, size), keys = q[1].shape[-2:], k[1].shape[-1]
        places = placed(q), placed(k, turned=True), placed(v)
        masked = tuple(
            Mask(placed(one, sides=mask.sides), mask.sides is not None)
            for mask, one in zip(scores.masks, placing.masks, strict=True)
        )
        shape = shape_of(chain[-1])
        assert shape is not None
        *lead, token, feature = out.strides
        spec = Attention(
            placing.lead, queries, keys, size, v[1].shape[-1],
            scores.factor * q[0].factor * k[0].factor,
            tuple(shapes), *places,
            Strides(0, out.offset, tuple(lead), token, feature), shape, masked, zero_hidden,
        )  # fmt: skip
        core = {*inner, *chain}
        last = chain[-1]
        if not self._view.closed(core, last) or self._view.taken.intersection(core):
            return None
        views = (q, k, v, *placing.masks)
        if core.intersection(traced.base for traced, _ in views):
            return None
        passed = [var for traced, _ in views for var in traced.passed]
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
