"""Rows of the catalogue on tiles, on the tile unit and on its twin in software, and on lanes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nmcompile.kernels.avx512_amx.tiles.conv import emit_tiles
from nmcompile.kernels.avx512_amx.twin import Software
from nmcompile.kernels.catalog import CATALOG, Kernel
from nmcompile.kernels.problem import Lowered, Problem
from nmcompile.runtime import cpu
from nmcompile.targets import find_target

TARGET = "avx512_amx"
UNITS = ("hardware", "software")
LANES, ON_LANES = "lanes", "avx512_bf16"


def row_on(unit: str, name: str) -> Kernel:
    """A row for the tile unit, its twin, or lanes; skips the test where this CPU cannot run it."""
    target = ON_LANES if unit == LANES else TARGET
    (row,) = (row for row in CATALOG if row.name == f"{name}__{target}")
    features = set(find_target(target).cpu_features)
    tiles = {feature for feature in features if feature.startswith("amx")}
    needed = features - tiles if unit == "software" else features
    missing = needed - cpu.host()[1]
    if missing:
        pytest.skip(f"this CPU has no {', '.join(sorted(missing))}")
    if unit != "software":
        cpu.require(features, name)
        return row

    def emit(name: str, problem: Problem, config: Any) -> Lowered:
        lowered = row.emit(name, problem, config)
        on_tiles = lowered.emit is emit_tiles
        return replace(lowered, args=(*lowered.args, Software)) if on_tiles else lowered

    return replace(row, emit=emit)
