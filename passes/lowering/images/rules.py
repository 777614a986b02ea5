"""Where operators leave the images of a batch.

1. elementwise functions of one value, or of several that have their images at the same place;
2. convolutions, poolings, paddings, resizing, normalisation, reductions, sorting, concatenation,
   splitting, slices and gathers along other axes;
3. matrix products, whose images are rows, or matrices of a batch of them;
4. reshapes and transpositions, which move the axis.

Constants may have a row for each image where the rows are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nmcompile.passes.lowering.constants import RESHAPES
from nmcompile.passes.lowering.images.reading import Reader, Rows, Rule, Together
from nmcompile.passes.lowering.matching.recurrent import NAME as RECURRENT
from nmcompile.passes.lowering.matching.traced import axes_of, numbers
from nmcompile.passes.lowering.view import Expr


def _broadcast(reader: Reader, var: Expr) -> Rows:
    """Elementwise: operands are aligned at their last axes."""
    return _aligned(reader, var, reader.view.operands(var))


def _aligned(reader: Reader, var: Expr, values: Sequence[Expr]) -> Rows:
    rank = len(reader.shape(var))
    found = set[tuple[int, int]]()
    for value in values:
        rows = reader.rows(value)
        if rows is not None:
            found.add((rank - len(reader.shape(value)) + rows.axis, rows.each))
    reader.need(len(found) == 1)
    ((axis, each),) = found
    for value in values:
        shape = reader.shape(value)
        own = axis - (rank - len(shape))
        if reader.rows(value) is None and own >= 0 and shape[own] != 1:
            reader.need(reader.repeats(value, own, each))
    return Rows(axis, each)


def _first(reader: Reader, var: Expr) -> Rows:
    """The first operand, whose images are in front and stay there; the others are weights."""
    rows, _ = _only(reader, var)
    reader.need(rows.axis == 0)
    return rows


def _planar(reader: Reader, var: Expr) -> Rows:
    """Convolutions and poolings of images with channels behind the batch."""
    attrs = reader.view.definitions[var].attrs
    layout = str(getattr(attrs, "data_layout", None) or getattr(attrs, "layout", "N"))
    reader.need(layout.startswith("N"))
    return _first(reader, var)


def _only(reader: Reader, var: Expr) -> tuple[Rows, int]:
    """The first operand, the others being of all images; its images and its rank."""
    x, *others = reader.view.operands(var)
    rows = reader.rows(x)
    reader.need(rows is not None and not any(reader.rows(other) for other in others))
    assert rows is not None
    return rows, len(reader.shape(x))


def _axes_of(attrs: Any, rank: int) -> set[int] | None:
    """The axes that an operator works along; None for all."""
    axes: Any = getattr(attrs, "axes", None)
    if axes is None:
        axes = getattr(attrs, "axis", None)
    if axes is None:
        return None
    return {int(axis) % rank for axis in (axes if hasattr(axes, "__len__") else [axes])}


def _along(reader: Reader, var: Expr) -> Rows:
    """Works along other axes, and leaves the shape as it is but for them."""
    rows, rank = _only(reader, var)
    axes = _axes_of(reader.view.definitions[var].attrs, rank)
    reader.need(axes is not None and rows.axis not in axes)
    return rows


def _reduced(reader: Reader, var: Expr) -> Rows:
    """Other axes become one number, or go."""
    rows, rank = _only(reader, var)
    attrs = reader.view.definitions[var].attrs
    axes = _axes_of(attrs, rank)
    reader.need(axes is not None and rows.axis not in axes)
    if bool(attrs.keepdims) or axes is None:
        return rows
    return Rows(rows.axis - sum(axis < rows.axis for axis in axes), rows.each)


def _grouped(reader: Reader, var: Expr) -> Rows:
    """Normalisation within each image."""
    rows, rank = _only(reader, var)
    attrs = reader.view.definitions[var].attrs
    axes = {int(axis) % rank for axis in attrs.axes} | {int(attrs.channel_axis) % rank}
    reader.need(rows.axis not in axes)
    return rows


def _padded(reader: Reader, var: Expr) -> Rows:
    rows, _ = _only(reader, var)
    width = [int(each) for each in reader.view.definitions[var].attrs.pad_width]
    reader.need(not any(width[2 * rows.axis : 2 * rows.axis + 2]))
    return rows


def _concatenated(reader: Reader, var: Expr) -> Rows:
    rank = len(reader.shape(var))
    axis: Any = reader.view.definitions[var].attrs.axis
    rows = _aligned(reader, var, reader.view.operands(var))
    reader.need(axis is not None and int(axis) % rank != rows.axis)
    return rows


def _sliced(reader: Reader, var: Expr) -> Rows:
    """Other axes, all given as numbers."""
    rows, rank = _only(reader, var)
    axes = numbers(reader.view.args(var)[1])
    reader.need(axes is not None and rows.axis not in {axis % rank for axis in axes})
    return rows


def _taken(reader: Reader, var: Expr) -> Rows:
    """Rows of other axes, or rows of a table for each image."""
    data, index = reader.view.args(var)[:2]
    rank, axis = len(reader.shape(data)), reader.view.definitions[var].attrs.axis
    reader.need(axis is not None)
    along = int(axis) % rank
    rows, places = reader.rows(data), reader.rows(index)
    if rows is None:
        assert places is not None
        return Rows(along + places.axis, places.each)
    reader.need(places is None and rows.axis != along)
    moved = len(reader.shape(index)) - 1 if along < rows.axis else 0
    return Rows(rows.axis + moved, rows.each)


def _transposed(reader: Reader, var: Expr) -> Rows:
    rows, _ = _only(reader, var)
    return Rows(axes_of(reader.view, var).index(rows.axis), rows.each)


def _reshaped(reader: Reader, var: Expr) -> Rows:
    """What lies before the images stays before them, and each keeps its part of the memory."""
    x = reader.view.args(var)[0]
    rows, old, new = reader.rows(x), reader.shape(x), reader.shape(var)
    reader.need(rows is not None)
    assert rows is not None
    before = math.prod(old[: rows.axis])
    for axis, extent in enumerate(new):
        if math.prod(new[:axis]) == before and extent % reader.batch == 0:
            return Rows(axis, extent // reader.batch)
    raise Together(" takes images together")


def _broadcast_to(reader: Reader, var: Expr) -> Rows:
    rows = _aligned(reader, var, reader.view.args(var)[:1])
    reader.need(reader.shape(var)[rows.axis] == reader.batch * rows.each)
    return rows


def _multiplied(reader: Reader, var: Expr) -> Rows:
    """Matrices whose rows, or columns, are images, or that each belong to one."""
    left, right = reader.view.args(var)[:2]
    sides = (reader.rows(left), reader.rows(right))
    ranks = [len(reader.shape(side)) for side in (left, right)]
    reader.need(min(ranks) >= 2)
    rank = len(reader.shape(var))
    if all(sides):
        matrices = [
            rows is not None and rows.axis < own - 2 for rows, own in zip(sides, ranks, strict=True)
        ]
        reader.need(all(matrices))
        return _aligned(reader, var, (left, right))
    if sides[0] is not None:
        reader.need(sides[0].axis < ranks[0] - 1)
        rows, own, other, kept = sides[0], ranks[0], right, ranks[0] - 2
    else:
        assert sides[1] is not None
        reader.need(sides[1].axis != ranks[1] - 2)
        rows, own, other, kept = sides[1], ranks[1], left, ranks[1] - 1
    axis = rank - own + rows.axis
    shape = reader.shape(other)
    place = axis - (rank - len(shape))
    # A batch of other matrices must not meet that of the images, but for the matrix's own axes.
    reader.need(rows.axis == kept or place < 0 or shape[place] == 1)
    return Rows(axis, rows.each)


def _second(reader: Reader, var: Expr) -> Rows:
    """Steps of an LSTM or GRU, in which the batch is the second axis."""
    rows, _ = _only(reader, var)
    reader.need(rows.axis == 1)
    return rows


_ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "asin", "asinh", "astype", "atan", "atan2", "atanh",
    "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "clip", "cos", "cosh",
    "divide", "equal", "erf", "exp", "floor", "floor_divide", "floor_mod", "greater",
    "greater_equal", "isfinite", "isinf", "isnan", "left_shift", "less", "less_equal", "log",
    "log_add_exp", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum",
    "mod", "multiply", "negative", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.selu",
    "nn.silu", "nn.softplus", "not_equal", "power", "right_shift", "round", "rsqrt", "sigmoid",
    "sign", "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc", "where",
)  # fmt: skip
_PLANAR = (
    "image.resize2d", "image.resize3d", "nn.adaptive_avg_pool1d", "nn.adaptive_avg_pool2d",
    "nn.adaptive_avg_pool3d", "nn.avg_pool1d", "nn.avg_pool2d", "nn.avg_pool3d", "nn.conv1d",
    "nn.conv1d_transpose", "nn.conv2d", "nn.conv2d_transpose", "nn.conv3d", "nn.conv3d_transpose",
    "nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d", "nn.pixel_shuffle",
)  # fmt: skip
_ALONG = (
    "argsort", "cumprod", "cumsum", "dequantize", "flip", "nn.layer_norm", "nn.log_softmax",
    "nn.prelu", "nn.rms_norm", "nn.softmax", "quantize", "sort", "split", "topk",
)  # fmt: skip
_REDUCED = ("argmax", "argmin", "max", "mean", "min", "prod", "std", "sum", "variance")

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    **dict.fromkeys(_PLANAR, _planar),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys((*RESHAPES, "nn.batch_flatten"), _reshaped),
    "broadcast_to": _broadcast_to,
    RECURRENT: _second,
    "concat": _concatenated,
    "matmul": _multiplied,
    "nn.group_norm": _grouped,
    "nn.instance_norm": _grouped,
    "nn.pad": _padded,
    "permute_dims": _transposed,
    "strided_slice": _sliced,
    "take": _taken,
}
