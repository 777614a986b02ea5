"""What this machine's CPU can do, as the Linux kernel reports it.

The flags in /proc/cpuinfo and not the model name decide: virtual machines hide instruction sets
that the model has, and the kernel drops those whose registers it does not save.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from nmcompile.errors import DeviceError

CPUINFO = Path("/proc/cpuinfo")

TILES = "amx_tile"
"""The flag of a CPU with tile registers, which a process has to ask the kernel for."""

# Of x86-64 Linux: asm/unistd_64.h, asm/prctl.h; the state component is that of tile data.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def host() -> tuple[str, frozenset[str]]:
    """Return the CPU's name and its feature flags, e.g. "avx512f".

    Raises:
        DeviceError: /proc/cpuinfo cannot be read.
    """
    fields = _fields()
    return fields.get("model name", "unknown CPU"), frozenset(fields.get("flags", "").split())


def model() -> str:
    """Return name, family and model: what machines whose measurements compare have in common.

    Raises:
        DeviceError: as `host`.
    """
    fields = _fields()
    name, family, number = (fields.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} {family}/{number}"


def _fields() -> dict[str, str]:
    """What the kernel says of the first core."""
    try:
        text = CPUINFO.read_text(errors="replace")
    except OSError as error:
        raise DeviceError(
            f"cannot tell which CPU features this machine has: {CPUINFO} cannot be read "
            f"({error.strerror}); artifacts run on Linux only"
        ) from error
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def require(features: Iterable[str], what: str) -> None:
    """Check that this machine has all `features`, and that this process may use them.

    Args:
        features: flag names as /proc/cpuinfo spells them.
        what: what needs them, for the message.

    Raises:
        DeviceError: names the missing features and the CPU, or why the kernel does not permit them.
    """
    features = tuple(features)
    name, present = host()
    missing = [feature for feature in features if feature not in present]
    if missing:
        raise DeviceError(
            f"{what} needs the CPU features {', '.join(missing)}, which this machine's {name} "
            "does not have; run it on a CPU that has them, or compile the model for this one"
        )
    if TILES in features:
        _ask_for_tiles(what)


def _ask_for_tiles(what: str) -> None:
    """Ask for the tile registers, for all threads of this process; without, their use ends it.

    https://docs.kernel.org/arch/x86/xstate.html
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    raise DeviceError(
        f"{what} needs the CPU's tile registers, which the kernel does not permit ({reason}): "
        "expected Linux 5.16 or later, and threads whose stack for signals has room for them; "
        "compile the model for the target avx512_vnni"
    )
