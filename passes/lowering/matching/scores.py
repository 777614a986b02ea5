"""Read how the scores of an attention were made: back from a softmax to the product of q and k."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nmcompile.passes.lowering.matching.strided import Shape
from nmcompile.passes.lowering.matching.traced import axes_of, reshapes, scaling_of
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, scalar, shape_of


@dataclass(frozen=True)
class Masking:
    """A mask at the place where the scores have the shape `at`.

    turned: whether elements are in the order of keys there, not of queries.
    sides: of truth values, what stands where they hold and where they do not: 0 for scores that
        stay.
    """

    value: Expr
    at: Shape
    turned: bool
    sides: tuple[float, float] | None = None


@dataclass
class Scores:
    """The way back from a softmax to the product of queries and keys.

    turned: whether rows of the product are keys: k q^T.
    passed: variables from the product to what the softmax reads; shapes: of these.
    """

    product: Expr
    turned: bool
    factor: float = 1.0
    masks: list[Masking] = field(default_factory=list)
    passed: list[Expr] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)


def ordered(extents: Shape, turned: bool) -> Shape:
    """Extents of rows and columns, the other way round where they are turned."""
    return extents[::-1] if turned else extents


def turns(view: FunctionView, var: Expr, behind: Shape) -> bool:
    """Whether an operator exchanges rows and columns of matrices, and moves no other axes.

    Args:
        view: of the function.
        var: what the operator makes.
        behind: extents of rows and columns behind it. With one of them 1, nothing moves: that
            `reshapes`.
    """
    shape = shape_of(var) or ()
    if view.op(var) != "permute_dims" or 1 in behind or shape[-2:] != behind:
        return False
    rank = len(shape)
    return axes_of(view, var) == (*range(rank - 2), rank - 1, rank - 2)


class ScoresReader:
    """Reads the scores of one softmax.

    Reshapes may part and join axes in any way in between, so that the axes of a tensor on the way
    are not always rows and columns. What holds everywhere is the order of the elements: pair by
    pair of batch and head, row by row.
    """

    def __init__(self, view: FunctionView, extents: Shape) -> None:
        self._view = view
        self._extents = extents  # queries and keys

    def read(self, value: Expr, turned: bool) -> Scores | None:
        """How scores were made from a product; None if they were not.

        Args:
            value: the scores.
            turned: whether their rows are keys.
        """
        view, shape = self._view, shape_of(value)
        if shape is None or len(shape) < 2 or value in view.taken or value in view.outputs:
            return None
        if view.op(value) == "matmul":
            return Scores(value, turned, passed=[value], shapes=[shape])
        found: Scores | None = None
        if turns(view, value, ordered(self._extents, turned)):
            found = self.read(view.args(value)[0], not turned)
        elif reshapes(view, value):
            found = self.read(view.args(value)[0], turned)
        elif (scaling := scaling_of(view, value)) is not None:
            found = self.read(scaling[0], turned)
            if found is None or found.masks:
                return None
            found.factor *= scaling[1]
        elif view.op(value) == "add":
            found = self._added(value, shape, turned)
        elif view.op(value) == "where":
            found = self._selected(value, shape, turned)
        if found is not None:
            found.passed.append(value)
            found.shapes.append(shape)
        return found

    def _added(self, value: Expr, shape: Shape, turned: bool) -> Scores | None:
        left, right = self._view.args(value)
        for inner, mask in ((left, right), (right, left)):
            if shape_of(inner) != shape or shape_of(mask) is None:
                continue
            found = self.read(inner, turned)
            if found is not None:
                zeros = constant(mask)
                if zeros is None or zeros.any():
                    found.masks.append(Masking(mask, shape, turned))
                return found
        return None

    def _selected(self, value: Expr, shape: Shape, turned: bool) -> Scores | None:
        """Scores where a truth value says so, a number below 0 elsewhere."""
        condition, first, second = self._view.args(value)
        for inner, fill, seen in ((first, second, True), (second, first, False)):
            number = scalar(fill)
            if number is None or not number < 0 or shape_of(inner) != shape:
                continue
            found = self.read(inner, turned)
            if found is None or shape_of(condition) is None:
                return None
            sides = (0.0, number) if seen else (number, 0.0)
            found.masks.append(Masking(condition, shape, turned, sides))
            return found
        return None

    def zeros(self, scores: Scores, softmax: Expr) -> list[Expr] | None:
        """The variables that select zeros where all scores are -inf, the result last.

        Where the only mask is -inf everywhere, the scores are, too, and where weights are NaN, all
        scores are -inf: but for scores that are NaN or infinite themselves. These count as seen,
        so that NaN comes through, as in torch.

        Args:
            scores: how those were made that the softmax reads, with queries in rows.
            softmax: over the last axis.
        """
        view = self._view
        choices = [user for user in view.users.get(softmax, []) if view.op(user) == "where"]
        if len(choices) != 1:
            return None
        user = choices[0]
        condition, zero, weights = view.args(user)
        zeros = constant(zero)
        if not weights.same_as(softmax) or zeros is None or zeros.any():
            return None
        if view.op(condition) == "isnan" and view.args(condition)[0].same_as(softmax):
            return [condition, user]
        passed = self._nothing_seen(scores.passed[-1], condition, (_BY_MAXIMUM, _BY_COUNT))
        if passed is None and len(scores.masks) == 1 and scores.masks[0].sides is None:
            passed = self._nothing_seen(scores.masks[0].value, condition, (_OF_MASK,))
        return None if passed is None else [*passed, user]

    def _nothing_seen(
        self, scores: Expr, condition: Expr, spellings: tuple[tuple[str, ...], ...]
    ) -> list[Expr] | None:
        """The variables of "all scores are -inf" in one of some spellings."""
        for names in spellings:
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


# From the selection back: a maximum of truth values, a count of them, a maximum of the mask.
_BY_MAXIMUM = ("logical_not", "astype", "max", "astype", "logical_not", "equal")
_BY_COUNT = ("equal", "sum", "where", "equal")
_OF_MASK = ("equal", "max")
