"""The machines that nmcompile compiles for, one row each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from nmcompile.errors import TargetError


@dataclass(frozen=True)
class Target:
    """One target.

    name: as in `--target`.
    llvm_cpu: what LLVM generates code for: the oldest CPU that has the features.
    cpu_features: flags of /proc/cpuinfo that the machine must show; written to the artifact.
    dtype: element type of weights and activations.
    """

    name: str
    description: str
    llvm_cpu: str
    cpu_features: tuple[str, ...]
    dtype: str


TARGETS: tuple[Target, ...] = (
    Target(
        "avx512",
        "x86-64 with AVX-512 (Skylake-SP, Zen 4 and later), float32",
        # x86-64-v4 in LLVM prefers 256-bit vectors only where a CPU model says so.
        "x86-64-v4",
        ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "fma", "avx2", "bmi2"),
        "float32",
    ),
)


def find_target(name: str) -> Target:
    """The row of one target.

    Raises:
        TargetError: no such target.
    """
    for target in TARGETS:
        if target.name == name:
            return target
    names = ", ".join(target.name for target in TARGETS)
    raise TargetError(f"target {name!r} is unknown; expected one of: {names} (see `nmc targets`)")


def check_toolchain() -> None:
    """Make sure that the compiled library can be linked.

    Raises:
        TargetError: there is no C++ compiler.
    """
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        raise TargetError(
            "linking the compiled library needs a C++ compiler on this machine (not on the one "
            "that runs the artifact); found none of g++, clang++, c++: install one, for example "
            "with `apt-get install g++`"
        )
