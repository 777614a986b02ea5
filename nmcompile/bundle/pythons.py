"""The compiled part of tvm_ffi, one file per minor version of Python."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from nmcompile.errors import DeviceError, TargetError

THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_OLDEST = 11  # what nmcompile's runtime is written for: 3.11
# The tags of tvm_ffi's wheels for Linux.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64")
_CORE = re.compile(r"tvm_ffi/(core\.[^/]+\.so)")


def bindings() -> Path:
    """The folder of tvm_ffi.

    Raises:
        DeviceError: it is not installed.
    """
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or spec.origin is None:
        raise DeviceError(
            "tvm_ffi is not installed; pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
        )
    return Path(spec.origin).parent


def compiled_parts(versions: Iterable[str], scratch: Path) -> dict[str, Path]:
    """The compiled part for this Python and for `versions`, by version, oldest first.

    That for another Python comes from the wheel of the same release, which differs from the
    installed one in this file only. pip downloads it.

    Args:
        versions: of CPython, such as "3.12".
        scratch: a folder for what is downloaded.

    Raises:
        DeviceError: tvm_ffi is not installed for this Python.
        TargetError: a version is none, or too old, or pip finds no wheel for it.
    """
    wanted = {THIS_PYTHON: 0}
    for version in versions:
        match = re.fullmatch(r"3\.(\d{1,3})", version)
        if match is None or int(match[1]) < _OLDEST:
            raise TargetError(
                f"Python version {version!r}: expected 3.{_OLDEST} or later, such as 3.12"
            )
        wanted[version] = 0
    return {
        version: _installed() if version == THIS_PYTHON else _fetched(version, scratch)
        for version in sorted(wanted, key=lambda version: int(version.partition(".")[2]))
    }


def _installed() -> Path:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (path := bindings() / f"core{suffix}").is_file():
            return path
    raise DeviceError(
        f"{bindings()} has no compiled part for this Python; pip install --force-reinstall "
        "'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
    )


def _fetched(version: str, scratch: Path) -> Path:
    folder = scratch / version
    release = f"apache-tvm-ffi=={importlib.metadata.version('apache-tvm-ffi')}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    command += ["--only-binary", ":all:", "--python-version", version, "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, release], capture_output=True, text=True, check=False)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if match := _CORE.fullmatch(name):
                    path = folder / match[1]
                    path.write_bytes(archive.read(name))
                    return path
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise TargetError(
        f"Python version {version}: pip cannot download the wheel of {release} for it ({reason}); "
        "check the network, or write the bundle under that Python"
    )
