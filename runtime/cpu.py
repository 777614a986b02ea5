"""What this machine's CPU can do, as the Linux kernel reports it.

The flags in /proc/cpuinfo and not the model name decide: virtual machines hide instruction sets
that the model has, and the kernel drops those whose registers it does not save.
"""

from collections.abc import Iterable
from pathlib import Path

from nmcompile.errors import DeviceError

CPUINFO = Path("/proc/cpuinfo")


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
    """Check that this machine has all `features`.

    Args:
        features: flag names as /proc/cpuinfo spells them.
        what: what needs them, for the message.

    Raises:
        DeviceError: names the missing features and the CPU.
    """
    name, present = host()
    missing = [feature for feature in features if feature not in present]
    if missing:
        raise DeviceError(
            f"{what} needs the CPU features {', '.join(missing)}, which this machine's {name} "
            "does not have; run it on a CPU that has them, or compile the model for this one"
        )
