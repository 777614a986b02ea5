"""Puts the twins in the place of the instructions, for this process."""

from __future__ import annotations

import os

from nmcompile.runtime import cpu
from nmcompile.targets import TARGETS

FEATURES = ("fma", "avx2", "bmi2")
"""Flags of the CPUs that the twins are compiled for."""
FLOATS = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
"""Flags of the CPUs whose vectors of floats have twins."""
_used = set[str]()


def here() -> frozenset[str]:
    """The flags of CPUs whose instructions have twins in this process.

    Those of integers and bfloat16 take LLVM several times as long: kernels of these are tested with
    NMCOMPILE_TWINS=all, whole models always.
    """
    return frozenset(_used if os.environ.get("NMCOMPILE_TWINS") == "all" else _used & FLOATS)


def use() -> None:
    """Compile for the CPU at hand what this process compiles for vectors of 512 bits.

    A CPU that has AVX-512, in part or whole, or that has no AVX2 keeps the instructions.
    """
    _, flags = cpu.host()
    if "avx512f" in flags or not flags.issuperset(FEATURES):
        return
    try:
        from tests.support.twins.calls import replace_calls
    except ModuleNotFoundError:  # the tests that need no compiler run without it
        return
    replace_calls()
    for row in TARGETS:
        if row.llvm_cpu and cpu.TILES not in row.cpu_features:
            _used.update(row.cpu_features)
            # The rows that all modules share.
            for name, value in (
                ("llvm_cpu", "x86-64-v3"),
                ("llvm_features", ""),
                ("cpu_features", FEATURES),
            ):
                object.__setattr__(row, name, value)
