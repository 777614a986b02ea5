"""The engines that `nmc bench` measures: one file each, and one row each in `table.py`."""

from nmcompile.bench.engines.engine import Array, Engine, Outputs
from nmcompile.bench.engines.table import (
    AS_DEFINED,
    ENGINES,
    INT8,
    OURS,
    EngineRow,
    find_engine,
    is_installed,
    name_inputs,
    open_engine,
    open_row,
)

__all__ = [
    "AS_DEFINED",
    "ENGINES",
    "INT8",
    "OURS",
    "Array",
    "Engine",
    "EngineRow",
    "Outputs",
    "find_engine",
    "is_installed",
    "name_inputs",
    "open_engine",
    "open_row",
]
