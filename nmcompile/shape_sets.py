"""The shapes that a model is compiled for: one for each input, or several sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nmcompile.errors import ShapeError, TargetError
from nmcompile.targets import Target
from nmcompile.wording import spell_shapes

Shapes = Mapping[str, Sequence[int]]
"""Of inputs, by name."""


def sets_of(shapes: Shapes | Sequence[Shapes] | None) -> list[Shapes | None]:
    """The sets of an argument `shapes`; None where the model itself says.

    Raises:
        ShapeError: it is neither a mapping nor a list of such, or two of them are the same.
    """
    if shapes is None or isinstance(shapes, Mapping):
        return [shapes]
    sets: list[Shapes | None] = []
    for index, each in enumerate(shapes):
        if not isinstance(each, Mapping):
            raise ShapeError(
                f"shapes[{index}]: expected a mapping from input names to shapes, as "
                f'{{"x": (8, 3, 224, 224)}}, found {each!r:.80}'
            )
        if any(_same(each, other) for other in sets):
            raise ShapeError(f"shapes[{index}]: {spell_shapes(each)} is there twice; name it once")
        sets.append(each)
    if not sets:
        raise ShapeError("shapes: expected at least one mapping from input names to shapes")
    return sets


def check_sets(sets: Sequence[Shapes | None], target: Target) -> None:
    """Make sure that one artifact can have so many sets of shapes.

    Raises:
        TargetError: the target is a GPU.
    """
    if len(sets) < 2:
        return
    alone = f"found {len(sets)} shapes: compile one artifact for each"
    if target.arch:
        raise TargetError(
            f"target {target.name} takes one shape for an artifact, {alone}, or choose a target of "
            "a CPU"
        )


def _same(one: Shapes, other: Shapes | None) -> bool:
    return (
        other is not None
        and one.keys() == other.keys()
        and all(tuple(one[name]) == tuple(other[name]) for name in one)
    )
