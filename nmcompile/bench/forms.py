"""What ours is compiled for: a target, `avx512_bf16:bf16` where not in its own precision."""

from __future__ import annotations

from nmcompile.bench.engines.table import INT8
from nmcompile.errors import TargetError
from nmcompile.targets import BF16, TARGETS, Target, find_target

BFLOAT16 = "bfloat16"


def read_form(text: str) -> str:
    """Read `avx512`, `cuda` or `avx512_bf16:bf16`; targets by their own names.

    Raises:
        TargetError: there is no such target, or it does not compute in the precision.
        DeviceError: "cuda" without a GPU.
    """
    name, colon, precision = text.partition(":")
    target = find_target(name)
    if not colon:
        return target.name
    if precision != BF16 or not target.bfloat16:
        able = ", ".join(f"{row.name}:{BF16}" for row in TARGETS if row.bfloat16)
        raise TargetError(
            f"target {text!r}: expected a precision that the target has behind the colon ({able}), "
            f"found {precision!r}; targets with integers run int8 by themselves"
        )
    return f"{target.name}:{precision}"


def target_of(form: str) -> Target:
    """The target."""
    return find_target(form.partition(":")[0])


def precision_of(form: str) -> str | None:
    """The precision of `nmcompile.compile`."""
    return form.partition(":")[2] or None


def dtype_of(form: str) -> str:
    """The element type that most is computed in."""
    if precision_of(form) == BF16:
        return BFLOAT16
    target = target_of(form)
    return INT8 if target.integers else target.dtype
