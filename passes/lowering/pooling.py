"""Poolings along one axis or three, and adaptive ones, as poolings of images by a window.

A window along several axes is one along each, one after the other. A maximum is one of maxima; an
average divides by how many elements count, which is the product of how many do along each axis, at
borders too. Every step reads the same memory in another shape:

1. along one axis: (N, C, L) is an image of one row, (N, C, 1, L);
2. along three: the frames are (N, C D, H, W), then they are rows of (N, C, D, H W), or these first,
   if that leaves less to be read again;
3. into so many windows along each axis: as the mean of everything, where there is one, else by a
   stride; windows that differ are put one behind the other first. Rows come before columns, whose
   elements are not side by side then;
4. means of volumes, as that of an image of one row, and maxima of images and volumes, as in 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from nmcompile.passes.lowering.matching.match import MAX_WINDOW
from nmcompile.passes.lowering.view import FunctionView, shape_of

Expr = Any
Shape = tuple[int, ...]

_LAYOUTS = {3: "NCW", 4: "NCHW", 5: "NCDHW"}


def pool_images(module: Any) -> Any:
    """A module with poolings in these forms.

    Args:
        module: simplified, with static shapes.
    """
    function = module["main"]
    if not isinstance(function.body, relax.SeqExpr):
        return module  # lower_kernels refuses it, and says why
    made, view = module.clone(), FunctionView(function)
    # A mean that is taken from something belongs to a norm, which has a kernel of its own.
    norms = {
        value
        for var, value in view.definitions.items()
        if view.op(var) == "mean"
        and any(view.op(user) == "subtract" for user in view.users.get(var, ()))
    }
    made.update_func(made.get_global_var("main"), _Pooling(made, norms).visit_expr(function))
    return relax.transform.CanonicalizeBindings()(made)


@dataclass(frozen=True)
class _Window:
    """What makes so many outputs of the elements along one axis."""

    extent: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)

    @property
    def is_idle(self) -> bool:
        """Whether every output is an element."""
        return self == _Window(self.extent, self.extent)


Emit = Callable[[Expr], Expr]
"""Binds a value to a new variable."""

Pool = Callable[[Expr, Sequence[_Window], Emit], Expr]
"""Pools an image (N, C, H, W) by a window along its rows and one along its columns."""

Rule = Callable[[Expr, Shape, Shape, Emit], Expr]
"""Takes a call, the shapes of what it reads and makes, and what makes new ones; returns another
form of it, or the call itself where it has none."""


def _by_stride(call: Expr, shape: Shape, result: Shape, emit: Emit) -> Expr:
    """Cases 1 and 2."""
    attrs, axes = call.attrs, len(shape) - 2
    if str(attrs.layout) != _LAYOUTS[len(shape)]:
        return call
    padding = [int(size) for size in attrs.padding]
    windows = [
        _Window(
            shape[2 + axis],
            result[2 + axis],
            int(attrs.pool_size[axis]),
            int(attrs.strides[axis]),
            int(attrs.dilation[axis]),
            (padding[axis], padding[axis + axes]),
        )
        for axis in range(axes)
    ]
    maximum = "max" in str(call.op.name)
    operator = relax.op.nn.max_pool2d if maximum else relax.op.nn.avg_pool2d

    def pool(image: Expr, along: Sequence[_Window], emit: Emit) -> Expr:
        (top, bottom), (left, right) = (window.padding for window in along)
        return operator(
            image,
            [window.kernel for window in along],
            [window.stride for window in along],
            [top, left, bottom, right],
            [window.dilation for window in along],
            bool(attrs.ceil_mode),
            bool(attrs.count_include_pad),
        )

    steps = [(1, 2), (0,)]
    if axes == 3 and _left(windows[:1]) < _left(windows[1:]):
        steps.reverse()
    return _pooled(call, windows, pool, emit, steps)


def _adaptive(call: Expr, shape: Shape, result: Shape, emit: Emit) -> Expr:
    """Case 3."""
    if str(call.attrs.layout) != _LAYOUTS[len(shape)]:
        return call
    if math.prod(result[2:]) == 1:
        return _mean(call, shape, result, emit)
    windows = [_Window(*each) for each in zip(shape[2:], result[2:], strict=True)]
    return _pooled(call, windows, _average, emit, [(0,), (1,), (2,)])


def _average(image: Expr, along: Sequence[_Window], emit: Emit) -> Expr:
    """The averages of so many windows along the one axis that is not idle.

    Output i of o is that of the elements from floor(i n / o) to ceil((i + 1) n / o).
    """
    axis, window = next((a, w) for a, w in enumerate(along) if not w.is_idle)
    extent, wanted = window.extent, window.outputs
    places = np.arange(wanted)
    begin, end = places * extent // wanted, -(-(places + 1) * extent // wanted)
    sizes = end - begin
    most = int(sizes.max())
    kernel = [most if a == axis else 1 for a in range(2)]
    if extent % wanted == 0:
        return relax.op.nn.avg_pool2d(image, kernel, kernel)
    # One behind the other, the shorter ones with the zero that is put behind the last element.
    read = begin[:, None] + np.arange(most)
    read = np.where(read < end[:, None], read, extent).reshape(-1)
    ends = [0, 0, 0, 0, 0, axis == 0, 0, axis == 1]
    padded = emit(relax.op.nn.pad(image, [int(end) for end in ends]))
    lined = emit(relax.op.take(padded, relax.const(read, "int64"), 2 + axis, "clip"))
    sums = emit(relax.op.nn.avg_pool2d(lined, kernel, kernel))
    factors = (most / sizes).astype(np.float32).reshape((-1, 1) if axis == 0 else (-1,))
    return relax.op.multiply(sums, relax.const(factors))


def _mean_of_volumes(call: Expr, shape: Shape, result: Shape, emit: Emit) -> Expr:
    """Case 4."""
    return _mean(call, shape, result, emit) if len(shape) == 5 and _is_of_all(call) else call


def _mean(call: Expr, shape: Shape, result: Shape, emit: Emit) -> Expr:
    image = shape if len(shape) == 4 else (*shape[:2], 1, math.prod(shape[2:]))
    mean = emit(relax.op.mean(_reshaped(call.args[0], image, emit), [2, 3], keepdims=True))
    return _reshaped(mean, result, emit)


def _maximum(call: Expr, shape: Shape, result: Shape, emit: Emit) -> Expr:
    """Case 4."""
    if len(shape) not in (4, 5) or not _is_of_all(call) or max(shape[2:]) > MAX_WINDOW:
        return call

    def pool(image: Expr, along: Sequence[_Window], emit: Emit) -> Expr:
        return relax.op.nn.max_pool2d(image, [window.kernel for window in along])

    windows = [_Window(extent, 1, extent) for extent in shape[2:]]
    return _reshaped(_pooled(call, windows, pool, emit, [(0,), (1,), (2,)]), result, emit)


def _is_of_all(call: Expr) -> bool:
    """Whether a reduction leaves one number of each channel."""
    rank = len(shape_of(call.args[0]) or ())
    return {int(axis) % rank for axis in call.attrs.axis or ()} == set(range(2, rank))


def _pooled(
    call: Expr,
    windows: Sequence[_Window],
    pool: Pool,
    emit: Emit,
    steps: Sequence[tuple[int, ...]],
) -> Expr:
    """What is pooled by a window along each axis, in steps along some of (D, H, W)."""
    if all(window.is_idle for window in windows):
        return call
    x, (batch, channels, *_) = call.args[0], shape_of(call.args[0]) or ()
    # An image has one frame, and a row is an image of one.
    whole = [_Window(1, 1)] * (3 - len(windows)) + list(windows)
    extents = [window.extent for window in whole]
    for axes in steps:
        depth, height, width = extents
        now = [whole[axis] if axis in axes else _Window(n, n) for axis, n in enumerate(extents)]
        if all(window.is_idle for window in now):
            continue
        image, along = (batch, channels * depth, height, width), now[1:]
        if axes == (0,):
            image = (batch, channels, depth, height * width)
            along = [now[0], _Window(image[3], image[3])]
        x = emit(pool(_reshaped(x, image, emit), along, emit))
        extents = [window.outputs for window in now]
    return _reshaped(x, (batch, channels, *extents[3 - len(windows) :]), emit)


def _left(windows: Sequence[_Window]) -> float:
    """The outputs for each element."""
    return math.prod(window.outputs / window.extent for window in windows)


def _reshaped(x: Expr, shape: Shape, emit: Emit) -> Expr:
    return x if shape_of(x) == shape else emit(relax.op.reshape(x, shape))


_RULES: Mapping[str, Rule] = {
    **{f"relax.nn.{kind}_pool{axes}d": _by_stride for kind in ("max", "avg") for axes in (1, 3)},
    **{f"relax.nn.adaptive_avg_pool{axes}d": _adaptive for axes in (1, 2, 3)},
    "relax.max": _maximum,
    "relax.mean": _mean_of_volumes,
}


@mutator
class _Pooling(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, kept: set[Expr]) -> None:
        super().__init__(module)
        self._kept = kept

    def visit_call_(self, call: Expr) -> Expr:
        rule = None if call in self._kept else _RULES.get(str(getattr(call.op, "name", "")))
        call = self.visit_expr_post_order(call)
        if rule is None or str(call.args[0].ty.dtype) != "float32":
            return call
        call = self.builder_.normalize(call)
        shape, result = shape_of(call.args[0]), shape_of(call)
        if shape is None or result is None:
            return call
        return rule(call, shape, result, self.builder_.emit)
