"""Where operands and result of an attention lie in the tensors that its kernel reads and writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nmcompile.passes.lowering.matching.scores import Masking, Scores, ordered
from nmcompile.passes.lowering.matching.strided import Shape, Strided, merged_lead
from nmcompile.passes.lowering.matching.traced import Reshape, Traced, axes_of, reshapes, trace
from nmcompile.passes.lowering.view import Expr, FunctionView, shape_of

View = tuple[Traced, Strided]
"""The earliest tensor of which an operand is a view, and that view."""


@dataclass(frozen=True)
class Placing:
    """Operands as (*lead, rows, columns) of the products q k^T and weights v, and the result.

    chain: from the second product to the tensor that is written.
    """

    q: View
    k: View
    v: View
    masks: list[View]
    chain: list[Expr]
    out: Strided

    @property
    def lead(self) -> Shape:
        """Extents of the axes before rows and columns."""
        return self.out.shape[:-2]

    @property
    def spared(self) -> int:
        """How many operators only move elements, which nothing has to compute."""
        operands = (self.q, self.k, self.v, *self.masks)
        return sum(len(traced.passed) for traced, _ in operands) + len(self.chain)

    def merged(self) -> Placing:
        """With as few axes in front as all operands have strides for."""
        views = [view for _, view in (self.q, self.k, self.v, *self.masks)] + [self.out]
        lead = merged_lead(self.lead, views)

        def merged(view: Strided) -> Strided:
            found = view.reshaped((*lead, *view.shape[-2:]))
            assert found is not None
            return found

        def both(one: View) -> View:
            return one[0], merged(one[1])

        return Placing(
            both(self.q), both(self.k), both(self.v), [both(one) for one in self.masks],
            self.chain, merged(self.out),
        )  # fmt: skip


@dataclass(frozen=True)
class Product:
    """The second product, and which of its operands the values are.

    turned: whether it is v^T w^T, whose columns are queries.
    """

    var: Expr
    v: Expr
    turned: bool


class Placer:
    """Finds placings in one function."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def place(self, scores: Scores, product: Product, matrix: Shape, pairs: int) -> Placing | None:
        """Where everything lies; None where an operand is nowhere to be read, or no such operand.

        Args:
            scores: how they were made.
            product: of weights and values.
            matrix: how many queries and keys a pair has.
            pairs: of batch and head, over all axes that products have in front.
        """
        queries, keys = matrix
        first, second = shape_of(scores.product), shape_of(product.var)
        if first is None or second is None:
            return None
        # With one query or one key the elements are in either order.
        turned = first[-2:] != matrix if 1 in matrix else scores.turned
        q, k = self._view.args(scores.product)
        q, k = (k, q) if turned else (q, k)
        shapes = [shape_of(x) for x in (q, k, product.v)]
        if any(len(shape or ()) < 2 for shape in shapes):
            return None
        if any(str(x.ty.dtype) != "float32" for x in (q, k, product.v)):
            return None
        size = (shapes[0] or ())[-2 if turned else -1]
        value_size = second[-2 if product.turned else -1]
        if first[-2:] != ordered(matrix, turned) or not size:
            return None
        if second[-2:] != ordered((queries, value_size), product.turned):
            return None
        if math.prod(second[:-2]) != pairs or math.prod(first[:-2]) != pairs:
            return None
        chains = list(self._results(product.var))
        shapes = [*scores.shapes, second, *(shape_of(c[-1]) for c in chains)]
        found = None
        for lead in self._leads(pairs, shapes, (q, k, product.v)):
            views = (
                self._operand(q, first[:-2], lead, (queries, size), turned, scaled=True),
                self._operand(k, first[:-2], lead, (size, keys), turned, scaled=True),
                self._operand(
                    product.v, second[:-2], lead, (keys, value_size), product.turned, scaled=False
                ),
            )
            masks = [self._mask(mask, (*lead, queries, keys)) for mask in scores.masks]
            written = self._result(chains, (*lead, queries, value_size), product.turned)
            held, read = ([view for view in row if view is not None] for row in (views, masks))
            if len(held) < len(views) or len(read) < len(masks) or written is None:
                continue
            placing = Placing(held[0], held[1], held[2], read, *written)
            if found is None or placing.spared > found.spared:
                found = placing
        return None if found is None else found.merged()

    def _leads(
        self, pairs: int, shapes: list[Shape | None], operands: tuple[Expr, ...]
    ) -> Iterator[Shape]:
        """The finest extents into which the shapes part the axes in front of rows and columns.

        Operands that are views with coarser axes are views with these, too. Some shapes part them
        in ways that have no common one, as where the result or what is in memory has its axes in
        another order: then there is one for each that may come first.
        """
        for operand in operands:
            traces = trace(self._view, operand, scaled=True)
            shapes = [*shapes, *(shape_of(traced.base) for traced in traces)]
        fronts = (shape[:-2] for shape in shapes if shape is not None)
        rows = [_cuts(front) for front in dict.fromkeys(fronts) if math.prod(front) == pairs]
        rows.sort(key=len, reverse=True)
        leads = (_common({1, pairs}, [chosen, *rows]) for chosen in rows or [[]])
        return iter(dict.fromkeys(leads))

    def _operand(
        self, operand: Expr, front: Shape, lead: Shape, extents: Shape, turned: bool, *,
        scaled: bool,
    ) -> View | None:  # fmt: skip
        """The earliest tensor of which an operand is a view of the wanted shape, and that.

        Args:
            operand: of a product.
            front: axes before the last two that the product has.
            lead: those that are wanted.
            extents: of rows and columns that are wanted.
            turned: whether the operand has them the other way round.
            scaled: whether products with a number may lie between.
        """
        own = ordered(extents, turned)
        shape = shape_of(operand) or ()
        for traced in trace(self._view, operand, scaled=scaled):
            found = self._viewed(traced, shape, (*front, *own), (*lead, *own))
            if found is not None:
                return traced, _turned(found) if turned else found
        return None

    def _mask(self, mask: Masking, wanted: Shape) -> View | None:
        """The earliest tensor of which a mask is a view of the scores' shape, and that."""
        if str(mask.value.ty.dtype) != ("float32" if mask.sides is None else "bool"):
            return None
        own = (*wanted[:-2], *ordered(wanted[-2:], mask.turned))
        for traced in trace(self._view, mask.value, scaled=False):
            found = self._viewed(traced, shape_of(mask.value) or (), mask.at, own)
            found = None if found is None else _turned(found) if mask.turned else found
            if found is not None and found.strides[-1] in (0, 1):
                return traced, found
        return None

    @staticmethod
    def _viewed(traced: Traced, shape: Shape, at: Shape, wanted: Shape) -> Strided | None:
        """A value of a shape, repeated to the shape `at`, in the wanted one."""
        if math.prod(shape) == math.prod(at):
            held = traced.as_view(Reshape(wanted))
        else:
            held = traced.as_view()
            held = None if held is None else held.broadcast(at)
            held = None if held is None else held.reshaped(wanted)
        return held if held is not None and held.is_simple else None

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

    def _result(
        self, chains: list[list[Expr]], wanted: Shape, turned: bool
    ) -> tuple[list[Expr], Strided] | None:
        """The longest chain whose end the kernel can write, best with features side by side."""
        own = (*wanted[:-2], *ordered(wanted[-2:], turned))
        kept: tuple[list[Expr], Strided] | None = None
        for chain in chains:
            out = self._written(chain, own)
            if out is None or not out.is_simple:
                continue
            out = _turned(out) if turned else out
            if out.strides[-1] == 1:
                return chain, out
            kept = kept or (chain, out)
        return kept

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


def _cuts(front: Shape) -> list[int]:
    """How many pairs lie behind each place between two axes."""
    return [math.prod(front[axis:]) for axis in range(1, len(front))]


def _common(ends: set[int], rows: Sequence[Sequence[int]]) -> Shape:
    """Extents of axes with cuts between them, as many as do not cut across each other."""
    cuts = sorted(ends)
    for cut in itertools.chain.from_iterable(rows):
        more = sorted({*cuts, cut})
        if all(outer % inner == 0 for inner, outer in itertools.pairwise(more)):
            cuts = more
    return tuple(outer // inner for inner, outer in itertools.pairwise(cuts))[::-1]


def _turned(view: Strided) -> Strided:
    """With rows and columns exchanged."""
    rank = len(view.axes)
    return view.permuted((*range(rank - 2), rank - 1, rank - 2))
