"""How many examples a property is tried on, and which combinations of what it depends on."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings

MORE = 10


def is_thorough() -> bool:
    """Whether this is the long run, `make test-all`."""
    return bool(os.environ.get("NMCOMPILE_THOROUGH"))


def examples(few: int, many: int | None = None) -> settings:
    """`few` examples in `make test`; `many`, or ten times as many, in `make test-all`."""
    return settings(max_examples=(many or MORE * few) if is_thorough() else few, deadline=None)


def crossed(*axes: Sequence[Any]) -> list[Any]:
    """Parameters for every combination of values; in `make test` each value is in one of them.

    Its combinations go along all axes at once, the shorter ones again from their start, so there
    are as many as the longest axis has values. All others are long.
    """
    few = max(len(axis) for axis in axes)
    usual = {tuple(index % len(axis) for axis in axes) for index in range(few)}
    return [
        pytest.param(
            *(axis[place] for axis, place in zip(axes, places, strict=True)),
            marks=[] if places in usual else [pytest.mark.long],
        )
        for places in itertools.product(*(range(len(axis)) for axis in axes))
    ]
