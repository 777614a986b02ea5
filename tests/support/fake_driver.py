"""NVIDIA's driver library: made up, for what only loads with one, or there and in the way."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from nmcompile.runtime.native import library_folders


def need_no_driver() -> None:
    """Skip where there is a real one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("there is a driver here")


def fake_driver(folder: Path) -> Path:
    """A driver without a GPU: whatever TVM's CUDA runtime calls answers with an error."""
    library = next(path for path in library_folders() if (path / "libtvm_runtime_cuda.so").exists())
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", library / "libtvm_runtime_cuda.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    words = [line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()]
    names = [word for word in words if word.startswith("cu") and word[2].isupper()]
    code = folder / "driver.c"
    code.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", code], check=True)
    return folder
