"""What a machine must have to run a bundle."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nmcompile.runtime import gpu as gpus
from nmcompile.runtime.format import Artifact

_GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")
_GLIBCXX = re.compile(rb"\0GLIBCXX_3\.4\.(\d+)(?=\0)")
_OLDEST_GLIBC = (2, 17)


@dataclass(frozen=True)
class Requirements:
    """What `bundle.json` says.

    Attributes:
        pythons: versions of CPython, such as "3.11": tvm_ffi is compiled for each minor version.
        suffixes: how the names of compiled modules end that these import.
        machine: processor architecture, as `platform.machine` names it.
        glibc: version of the C library, at least.
        glibcxx: version of libstdc++'s symbols, at least.
        packages: of Python, to be importable.
        gpu: whether what artifacts for GPUs need is in the bundle.
    """

    pythons: tuple[str, ...]
    suffixes: tuple[str, ...]
    machine: str
    glibc: str
    glibcxx: str
    packages: tuple[str, ...]
    gpu: bool


def needs_gpu(model: Artifact) -> bool:
    """Whether a model runs on a GPU."""
    return model.manifest.target.kind in gpus.KINDS


def find_requirements(
    models: Sequence[Artifact],
    libraries: Iterable[bytes | memoryview],
    parts: Mapping[str, Path],
    gpu: bool,
) -> Requirements:
    """The requirements of `models`, of shared objects, and of tvm_ffi's parts by Python version."""
    glibc, glibcxx = _OLDEST_GLIBC, 0
    # The versions of symbols that an object asks for stand in it as strings.
    for content in (*libraries, *(model.library for model in models)):
        versions = [(int(match[1]), int(match[2])) for match in _GLIBC.finditer(content)]
        glibc = max([glibc, *versions])
        glibcxx = max([glibcxx, *(int(match[1]) for match in _GLIBCXX.finditer(content))])
    return Requirements(
        pythons=tuple(parts),
        suffixes=tuple(part.name.removeprefix("core") for part in parts.values()),
        machine=platform.machine(),
        glibc=".".join(map(str, glibc)),
        glibcxx=f"3.4.{glibcxx}",
        packages=("numpy", *(["ml_dtypes"] if any(map(_bfloat16, models)) else [])),
        gpu=gpu,
    )


def _bfloat16(model: Artifact) -> bool:
    manifest = model.manifest
    tensors = [spec.dtype for spec in (*manifest.inputs, *manifest.outputs)]
    return "bfloat16" in [*tensors, *(spec.dtype for spec in manifest.params)]
