"""Following a value back through operators that only move elements, to where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import relax

from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.matching.strided import Shape, Strided
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, scalar, shape_of

Step = Callable[[Strided], Strided | None]


@dataclass(frozen=True)
class Reshape:
    """A step to the same elements in another shape."""

    shape: Shape

    def __call__(self, view: Strided) -> Strided | None:
        """The view behind it."""
        return view.reshaped(self.shape)


@dataclass(frozen=True)
class Traced:
    """A value as a view of another one, times a number.

    base: whose memory it is; a variable or a constant.
    passed: the variables between, which nothing has to compute for it.
    """

    base: Expr
    steps: tuple[Step, ...]
    factor: float
    passed: tuple[Expr, ...]

    def as_view(self, *wanted: Step) -> Strided | None:
        """Where its elements lie, after further steps; None where some are not a view.

        Of reshapes in a row the last one counts.
        """
        shape = shape_of(self.base)
        assert shape is not None
        view: Strided | None = Strided.whole(shape)
        steps = [*self.steps, *wanted]
        for place, step in enumerate(steps):
            if view is None:
                return None
            behind = steps[place + 1] if place + 1 < len(steps) else None
            if not (isinstance(step, Reshape) and isinstance(behind, Reshape)):
                view = step(view)
        return view


def trace(view: FunctionView, value: Expr, *, scaled: bool) -> Iterator[Traced]:
    """A value as views of what it was made of, the earliest first, itself last.

    Args:
        view: of the function.
        value: with a static shape.
        scaled: whether products with a number are passed too.
    """
    found, steps, factor, passed = [Traced(value, (), 1.0, ())], list[Step](), 1.0, list[Expr]()
    while value not in view.taken:  # what another group has fused is nowhere in memory
        back = _back(view, value)
        if back is not None:
            passed.append(value)
            # A `split` goes once all its parts do.
            whole = getattr(view.definitions[value], "tuple_value", None)
            if whole in view.definitions:
                passed.append(whole)
            value, *made = back
            steps[:0] = made
        elif scaled and (scaling := scaling_of(view, value)) is not None:
            passed.append(value)
            value, by = scaling
            factor *= by
        else:
            break
        if shape_of(value) is None:
            break
        found.append(Traced(value, tuple(steps), factor, tuple(passed)))
    return reversed(found)


def scaling_of(view: FunctionView, var: Expr) -> tuple[Expr, float] | None:
    """(x, c) where a variable is x * c, or x / d and c is 1 / d; float32 of the same shape."""
    name = view.op(var)
    if name not in ("multiply", "divide"):
        return None
    left, right = view.args(var)
    if name == "multiply" and scalar(left) is not None:
        left, right = right, left
    number = scalar(right)
    if number is None or not math.isfinite(number) or shape_of(left) != shape_of(var):
        return None
    if name == "divide":
        number = 1.0 / number if number else math.inf
    return (left, number) if math.isfinite(number) else None


def reshapes(view: FunctionView, var: Expr) -> bool:
    """Whether an operator keeps all elements in their order, as moving axes of extent 1 does."""
    name = view.op(var)
    if name == "broadcast_to":
        return math.prod(shape_of(var) or ()) == math.prod(shape_of(view.args(var)[0]) or (0,))
    if name == "permute_dims":
        extents = shape_of(view.args(var)[0]) or ()
        moved = [axis for axis in axes_of(view, var) if extents[axis] != 1]
        return moved == sorted(moved)
    return name in RESHAPES


def axes_of(view: FunctionView, var: Expr) -> tuple[int, ...]:
    """The axes of a `permute_dims`."""
    rank, axes = len(shape_of(var) or ()), view.definitions[var].attrs.axes
    if axes is None:
        return tuple(reversed(range(rank)))
    return tuple(int(axis) % rank for axis in axes)


def _back(view: FunctionView, var: Expr) -> tuple[Expr, *tuple[Step, ...]] | None:
    """What an operator that moves elements reads, and what it does to where they lie."""
    shape = shape_of(var)
    defined = view.definitions.get(var)
    if shape is None or defined is None:
        return None
    if isinstance(defined, relax.TupleGetItem):
        return _part(view, defined, shape)
    name = view.op(var)
    if reshapes(view, var):
        return view.args(var)[0], Reshape(shape)
    if name == "broadcast_to":
        return view.args(var)[0], lambda held: held.broadcast(shape)
    if name == "permute_dims":
        axes = axes_of(view, var)
        return view.args(var)[0], lambda held: held.permuted(axes)
    if name == "strided_slice":
        return _slice(view, var, shape)
    if name == "take":
        return _select(view, var, shape)
    return None


def _part(view: FunctionView, item: Expr, shape: Shape) -> tuple[Expr, Step] | None:
    """One part of a `split`."""
    whole = item.tuple_value
    if view.op(whole) != "split":
        return None
    call = view.definitions.get(whole, whole)
    axis = int(call.attrs.axis) % len(shape)
    sizes = [(int(ty.shape[axis])) for ty in whole.ty.fields]
    begin = sum(sizes[: int(item.index)])
    return call.args[0], lambda held: held.sliced(axis, begin, shape[axis])


def numbers(value: Expr) -> list[int] | None:
    """A tuple of whole numbers."""
    fields = getattr(value, "fields", None)
    if fields is None:
        return None
    try:
        return [int(field.value) for field in fields]
    except (AttributeError, TypeError):
        return None


def _slice(view: FunctionView, var: Expr, shape: Shape) -> tuple[Expr, Step] | None:
    """A `strided_slice` with bounds that are known, forwards."""
    source, *bounds = view.args(var)
    whole, known = shape_of(source), [numbers(bound) for bound in bounds]
    if whole is None or len(known) < 3 or any(found is None for found in known):
        return None
    axes, begins = known[0] or [], known[1] or []
    steps = (known[3] if len(known) > 3 else None) or [1] * len(axes)
    if any(step < 1 for step in steps):
        return None

    def sliced(held: Strided) -> Strided | None:
        found: Strided | None = held
        for axis, begin, step in zip(axes, begins, steps, strict=True):
            place = axis % len(whole)
            first = min(max(begin + whole[place] if begin < 0 else begin, 0), whole[place])
            found = None if found is None else found.sliced(place, first, shape[place], step)
        return found

    return source, sliced


def _select(view: FunctionView, var: Expr, shape: Shape) -> tuple[Expr, *tuple[Step, ...]] | None:
    """A `take` of one constant index, which has no axis of its own."""
    source, index = view.args(var)[:2]
    held, chosen, axis = shape_of(source), constant(index), view.definitions[var].attrs.axis
    if held is None or chosen is None or chosen.ndim or axis is None:
        return None
    place, number = int(axis) % len(held), int(chosen)
    if not 0 <= number < held[place]:
        return None
    return source, lambda view: view.sliced(place, number, 1), Reshape(shape)
