"""Sizes that cannot be meant, or that a compiled model could not address."""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nmcompile.errors import ShapeError

MOST = (1 << 31) - 1  # elements: kernels count in 32 bits


def check_inputs(specs: Iterable[tuple[str, Sequence[int], str]]) -> None:
    """Check that inputs can be counted and fit into this machine's memory, all together.

    Args:
        specs: name, shape and numpy dtype name of each.

    Raises:
        ShapeError: they do not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = 0
    for name, shape, dtype in specs:
        _check(f"input {name}", shape)
        total += math.prod(shape) * _itemsize(dtype)
        if total > memory:
            raise ShapeError(
                f"input {name} of shape {tuple(shape)} brings the inputs to {total} bytes; "
                f"expected at most the {memory} bytes of memory that this machine has: choose a "
                "smaller batch"
            )


def check_module(module: Any) -> None:
    """Check that every tensor of an imported model can be counted.

    Raises:
        ShapeError: one cannot.
    """
    from tvm import relax

    shapes: set[tuple[int, ...]] = set()

    def visit(node: Any) -> None:
        ty = getattr(node, "ty", None) if isinstance(node, relax.Var) else None
        if isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr):
            shapes.add(tuple(int(e) for e in ty.shape.values if hasattr(e, "value")))

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    for shape in shapes:
        _check("a tensor of the model", shape)


def _check(what: str, shape: Sequence[int]) -> None:
    count = math.prod(shape)
    if any(extent < 0 for extent in shape):
        raise ShapeError(
            f"{what} has the shape {tuple(shape)}, in which a dimension is larger than {MOST} and "
            "cannot be counted: choose a smaller batch or image, or smaller paddings"
        )
    if count > MOST:
        raise ShapeError(
            f"{what} of shape {tuple(shape)} has {count} elements; expected at most {MOST}: choose "
            "a smaller batch or image"
        )


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
