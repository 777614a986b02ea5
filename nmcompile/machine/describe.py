"""What a measurement is taken on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

EXTENSIONS = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "neon")
PACKAGES = ("nmcompile", "apache-tvm", "torch", "onnxruntime", "openvino", "numpy")
CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
CPU0 = Path("/sys/devices/system/cpu/cpu0")
SMI_FIELDS = "name,compute_cap,memory.total,driver_version"


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all objects that are kept as JSON: unknown fields are refused."""


class Gpu(Struct, frozen=True, kw_only=True):
    """A graphics processor.

    name, architecture: as its driver says ("NVIDIA H100 80GB HBM3", "sm_90").
    memory_bytes: of the card.
    driver: its version.
    """

    name: str
    architecture: str
    memory_bytes: int
    driver: str


class Machine(Struct, frozen=True, kw_only=True):
    """What a measurement was taken on.

    cpu, family_model: as the processor names itself ("25/17").
    cores: that the process may use.
    features: vector extensions, spelled as in /proc/cpuinfo.
    caches: size by level ("L1d": "32K"), of the first core.
    memory_bytes: of the machine.
    governor: of the first core's clock, None where it cannot be read.
    system, python: of the process.
    """

    cpu: str
    family_model: str
    cores: int
    features: list[str]
    caches: dict[str, str]
    memory_bytes: int
    governor: str | None
    gpus: list[Gpu]
    system: str
    python: str


def describe_machine() -> Machine:
    """The machine of this process; what cannot be read is "" or None."""
    info = _cpuinfo()
    flags = info.get("flags", info.get("Features", "")).split()
    return Machine(
        cpu=info.get("model name", platform.processor() or platform.machine()),
        family_model=f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        cores=len(os.sched_getaffinity(0)),
        features=sorted(flag for flag in flags if flag.startswith(EXTENSIONS)),
        caches=_caches(),
        memory_bytes=_memory_bytes(),
        governor=_read(CPU0 / "cpufreq" / "scaling_governor"),
        gpus=_gpus(),
        system=platform.platform(),
        python=platform.python_version(),
    )


def package_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_document() -> dict[str, Any]:
    """Machine and versions in plain JSON types, for files of another form."""
    document: dict[str, Any] = msgspec.to_builtins(describe_machine())
    return document | {"versions": package_versions()}


def _cpuinfo() -> dict[str, str]:
    lines = (_read(CPUINFO) or "").split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_bytes() -> int:
    for line in (_read(MEMINFO) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _caches() -> dict[str, str]:
    """Size by level and kind, of the first core."""
    found = {}
    for index in sorted((CPU0 / "cache").glob("index*")):
        suffix = {"Data": "d", "Instruction": "i"}.get(_read(index / "type") or "", "")
        found[f"L{_read(index / 'level')}{suffix}"] = _read(index / "size") or "?"
    return found


def _gpus() -> list[Gpu]:
    """NVIDIA's, as nvidia-smi lists them; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    words = [program, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(line) for line in done.stdout.splitlines() if line.count(",") >= 3]


def _gpu(line: str) -> Gpu:
    name, capability, mebibytes, driver = (field.strip() for field in line.rsplit(",", 3))
    return Gpu(
        name=name,
        architecture=f"sm_{capability.replace('.', '')}",
        memory_bytes=int(mebibytes) << 20 if mebibytes.isdecimal() else 0,
        driver=driver,
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
