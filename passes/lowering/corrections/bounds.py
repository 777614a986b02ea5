"""Indices that stay within the axis that they are for.

TVM reads, and writes, whatever memory an index points at. Constant ones are looked at here. Those
that are computed are limited; where one was outside, floats become NaN: what was gathered with it,
the maximum over nothing in a region of another image, and all of what was scattered. Of integers
and truth values it is the nearest element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from nmcompile.errors import ImpossibleModelError
from nmcompile.passes.lowering.view import constant, shape_of

Expr = Any

NAMES = {
    "gather_elements": "a gather (GatherElements, torch.gather)",
    "gather_nd": "a gather (GatherND)",
    "scatter_elements": "a scatter (ScatterElements)",
    "scatter_nd": "a scatter (ScatterND)",
    "take": "a gather (Gather, index_select, embedding)",
}


def check_indices(function: Any) -> None:
    """Refuse constant indices outside of their axis.

    Raises:
        ImpossibleModelError: names the first of them.
    """
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call) and _name(binding.value) in NAMES:
                _check(binding.value)


def _check(call: Expr) -> None:
    shape, known = shape_of(call.args[0]), constant(call.args[1])
    if shape is None or known is None or (_name(call) == "take" and not _is_open(call)):
        return
    known, extents = np.atleast_1d(known), _extents(call, shape)
    bad = known[(known < -np.array(extents)) | (known >= np.array(extents))]
    if bad.size:
        expected = " and ".join(f"from {-extent} to {extent - 1}" for extent in extents)
        raise ImpossibleModelError(
            f"{NAMES[_name(call)]} in a tensor of shape {shape}: expected indices {expected}, "
            f"found {bad[0]}; correct the model"
        )


def _extents(call: Expr, shape: tuple[int, ...]) -> Sequence[int]:
    """Of the axes that indices are for: one, or one for each coordinate."""
    name = _name(call)
    if name in ("gather_nd", "scatter_nd"):
        first = 0 if name == "scatter_nd" else int(call.attrs.batch_dims)
        places = shape_of(call.args[1])
        return shape[first:] if places is None else shape[first : first + places[-1]]
    axis = call.attrs.axis
    return shape[:1] if axis is None else [shape[int(axis)]]


def limit_take(call: Expr, indices: Expr) -> Expr:
    """A `relax.take` by these indices, which are its own before they were cast."""
    data, axis = call.args[0], call.attrs.axis
    if not _is_open(call):
        return call
    mode = "nan" if constant(indices) is None and _is_float(data) else "clip"
    return relax.op.take(data, indices, axis, mode)


def limit_regions(call: Expr) -> Expr:
    """A `relax.vision.roi_align`, whose regions begin with the number of their image."""
    data, regions = call.args
    shape, listed = shape_of(data), shape_of(regions)
    if shape is None or listed is None or constant(regions) is not None:
        return call
    limits = np.full((2, 5), [[-np.inf], [np.inf]], np.float32)
    limits[:, 0] = 0, shape[0] - 1
    within = relax.op.minimum(
        relax.op.maximum(regions, relax.const(limits[0], "float32")),
        relax.const(limits[1], "float32"),
    )
    image, limited = (
        relax.op.strided_slice(value, axes=[1], begin=[0], end=[1]) for value in (regions, within)
    )
    bad = relax.op.reshape(relax.op.not_equal(image, limited), (listed[0], 1, 1, 1))
    return _marked(bad, relax.Call(call.op, [data, within], call.attrs), str(data.ty.dtype))


def limit_indices(call: Expr) -> Expr:
    """A gather or scatter of `NAMES`."""
    name, (data, indices, *others) = _name(call), call.args
    shape, places = shape_of(data), shape_of(indices)
    if shape is None or places is None or constant(indices) is not None:
        return call
    extents, dtype = _extents(call, shape), str(indices.ty.dtype)
    # Those from the end are counted from the front already, but for one operator.
    lowest = np.array([-n if name == "scatter_elements" else 0 for n in extents], dtype)
    highest = np.array([n - 1 for n in extents], dtype)
    within = relax.op.minimum(
        relax.op.maximum(indices, relax.const(lowest, dtype)), relax.const(highest, dtype)
    )
    result = relax.Call(call.op, [data, within, *others], call.attrs)
    if not _is_float(data):
        return result
    bad = relax.op.not_equal(indices, within)
    if name == "gather_nd":
        rest = len(shape) - int(call.attrs.batch_dims) - places[-1]
        bad = relax.op.reshape(_any(bad, -1), (*places[:-1], *[1] * rest))
    elif name != "gather_elements":
        bad = _any(bad, None)
    return _marked(bad, result, str(data.ty.dtype))


def _any(values: Expr, axis: int | None) -> Expr:
    count = relax.op.max(relax.op.astype(values, "int32"), axis)
    return relax.op.greater(count, relax.const(0, "int32"))


def _marked(bad: Expr, result: Expr, dtype: str) -> Expr:
    return relax.op.where(bad, relax.const(np.nan, dtype), result)


def _is_open(take: Expr) -> bool:
    """Whether it says nothing yet of indices outside."""
    return str(take.attrs.mode) in ("fast", "nan")


def _name(call: Expr) -> str:
    return str(call.op.name).removeprefix("relax.")


def _is_float(value: Expr) -> bool:
    return str(value.ty.dtype).startswith(("float", "bfloat"))


LIMITS: dict[str, Callable[[Expr], Expr]] = {
    **{f"relax.{name}": limit_indices for name in NAMES if name != "take"},
    "relax.vision.roi_align": limit_regions,
}
