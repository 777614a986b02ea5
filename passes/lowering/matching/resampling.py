"""Find images that are resized: along their last two axes, to no less than they are.

As TVM's operator, or as the weighted gathers that `passes/operators` writes for resizing:

    take(x, places) * weights + take(x, other places) * other weights ...

along one axis, and then along the other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.avx512.resample import REACH, reach_of
from nmcompile.kernels.spec import Resample, Taps
from nmcompile.passes.lowering.matching.found import Found
from nmcompile.passes.lowering.view import Expr, FunctionView, constant, shape_of
from nmcompile.passes.operators.taps import taps_of


@dataclass(frozen=True, eq=False)
class _Map:
    """A value that is a linear map of x along one axis, and the variables between."""

    x: Expr
    axis: int
    taps: Taps
    members: frozenset[Expr]


class ResamplingMatcher:
    """Finds them where they begin."""

    def __init__(self, view: FunctionView) -> None:
        self._view = view

    def match(self, var: Expr) -> Found | None:
        """The resizing that a variable begins, or None."""
        found = self._begun.get(var)
        return None if found is None or self._view.taken.intersection(found.members) else found

    @cached_property
    def _begun(self) -> dict[Expr, Found]:
        """All of a function, by their first variables."""
        return {found.members[0]: found for found in self._find()}

    def _find(self) -> Iterator[Found]:
        """From behind, so that both axes are found before one of them."""
        maps, seen = self._maps(), set[Expr]()
        for var in reversed(self._view.definitions):
            last = maps.get(var)
            if var in seen:
                continue
            if last is not None:
                seen.update(last.members)  # terms of a sum are nothing by themselves
            found = self._resized(var) if last is None else self._joined(var, last, maps)
            if found is not None:
                seen.update(found.members)
                yield found

    def _maps(self) -> dict[Expr, _Map]:
        found = dict[Expr, _Map]()
        for var in self._view.definitions:
            name, shape = self._view.op(var), shape_of(var)
            if name not in ("take", "multiply", "add") or shape is None or len(shape) < 3:
                continue
            if str(var.ty.dtype) != "float32":
                continue
            reader = {"take": self._taken, "multiply": self._weighted, "add": self._added}[name]
            made = reader(var, found)
            if made is not None:
                found[var] = made
        return found

    def _taken(self, var: Expr, found: dict[Expr, _Map]) -> _Map | None:
        x, index = self._view.args(var)[:2]
        shape, axis = shape_of(x), self._view.definitions[var].attrs.axis
        places = constant(index)
        if shape is None or axis is None or places is None or places.ndim != 1 or not places.size:
            return None
        along = int(axis) % len(shape)
        if along < len(shape) - 2 or not (0 <= places.min() and places.max() < shape[along]):
            return None
        taps = Taps((tuple(places.tolist()),), (None,))
        return _Map(x, along, taps, frozenset((var,)))

    def _weighted(self, var: Expr, found: dict[Expr, _Map]) -> _Map | None:
        """One gather times numbers along its axis."""
        left, right = self._view.args(var)
        left, right = (left, right) if left in found else (right, left)
        inner, weights, shape = found.get(left), constant(right), shape_of(var)
        if inner is None or weights is None or inner.taps.weights != (None,) or shape is None:
            return None
        wide = weights.reshape((1,) * (len(shape) - weights.ndim) + weights.shape)
        if any(extent != 1 for axis, extent in enumerate(wide.shape) if axis != inner.axis):
            return None
        numbers = np.broadcast_to(wide.reshape(-1), shape[inner.axis : inner.axis + 1])
        taps = Taps(inner.taps.places, (tuple(numbers.tolist()),))
        return _Map(inner.x, inner.axis, taps, inner.members | {var})

    def _added(self, var: Expr, found: dict[Expr, _Map]) -> _Map | None:
        left, right = (found.get(side) for side in self._view.args(var))
        if left is None or right is None or not left.x.same_as(right.x) or left.axis != right.axis:
            return None
        if len(left.taps.places[0]) != len(right.taps.places[0]):
            return None
        taps = Taps(left.taps.places + right.taps.places, left.taps.weights + right.taps.weights)
        return _Map(left.x, left.axis, taps, left.members | right.members | {var})

    def _joined(self, var: Expr, last: _Map, maps: dict[Expr, _Map]) -> Found | None:
        """A map and the one before it, along the other axis; else the map alone."""
        first = maps.get(last.x)
        if first is not None and first.axis != last.axis:
            taps = {first.axis: first.taps, last.axis: last.taps}
            found = self._of(var, first.x, taps, first.members | last.members)
            if found is not None:
                return found
        return self._of(var, last.x, {last.axis: last.taps}, last.members)

    def _resized(self, var: Expr) -> Found | None:
        """TVM's operator, in the forms that `passes/operators` leave as they are."""
        if self._view.op(var) != "image.resize2d":
            return None
        x, attrs = self._view.args(var)[0], self._view.definitions[var].attrs
        before, after = shape_of(x), shape_of(var)
        if before is None or after is None or attrs.layout != "NCHW":
            return None
        how = (attrs.method, attrs.coordinate_transformation_mode, attrs.rounding_method)
        taps = dict[int, Taps]()
        for axis in (2, 3):
            matrix = _matrix(before[axis], after[axis], *map(str, how))
            if matrix is None:
                return None
            terms = taps_of(matrix)
            weights = [None if t.weight is None else tuple(t.weight.tolist()) for t in terms]
            taps[axis] = Taps(tuple(tuple(t.index.tolist()) for t in terms), tuple(weights))
        return self._of(var, x, taps, frozenset((var,)))

    def _of(
        self, var: Expr, x: Expr, taps: dict[int, Taps], members: frozenset[Expr]
    ) -> Found | None:
        """What a kernel computes with such maps by axis, if it does, and nothing else reads it."""
        shape = shape_of(x)
        if shape is None or not self._view.closed(set(members), var):
            return None
        down, across = (
            taps.get(axis) or Taps((tuple(range(shape[axis])),), (None,))
            for axis in (len(shape) - 2, len(shape) - 1)
        )
        spec = Resample(shape, down, across)
        grown = [new - old for old, new in zip(shape[-2:], spec.out_shape[-2:], strict=True)]
        if min(grown) < 0 or max(grown) == 0 or reach_of(across) > REACH:
            return None
        return Found(spec, (x,), self._view.ordered(members))


def _matrix(
    before: int, after: int, method: str, where: str, rounding: str
) -> npt.NDArray[np.float64] | None:
    """What TVM's operator does along one axis, (after, before); None where that is not known."""
    place: npt.NDArray[np.float64] = np.arange(after, dtype=np.float64)
    if method == "nearest_neighbor" and (where, rounding) == ("asymmetric", "floor"):
        if after % before:
            return None
        place = np.floor(place / (after // before))
    elif method == "linear" and where == "align_corners":
        place = place * ((before - 1) / max(after - 1, 1))
    elif method == "linear" and (
        where == "half_pixel" or (where == "pytorch_half_pixel" and after > 1)
    ):
        place = (place + 0.5) * (before / after) - 0.5
    else:
        return None
    low = np.floor(place)
    matrix = np.zeros((after, before))
    for side, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
        np.add.at(matrix, (np.arange(after), side.clip(0, before - 1).astype(int)), weight)
    return matrix
