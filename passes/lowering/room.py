"""Whether there is room for what LLVM writes: where there is none, it ends the whole process."""

import mmap
import os
from pathlib import Path

from nmcompile.errors import DeviceError

_BYTES = 256 << 10  # a library of few functions and their object files
_BYTES_EACH = 80 << 10  # and each function more
_MEMORY = 256 << 20  # that LLVM takes at most for kernels, where they are compiled one by one
_MEMORY_EACH = 64 << 20  # and for each more that is compiled at the same time


def check_room(folder: Path, functions: int, workers: int = 1) -> None:
    """Find out before LLVM does that a folder or the memory is too small.

    Args:
        folder: where it writes.
        functions: how many it compiles.
        workers: how many of them at once.

    Raises:
        DeviceError: it is.
    """
    nbytes = _BYTES + functions * _BYTES_EACH
    memory = _MEMORY + (workers - 1) * _MEMORY_EACH
    try:
        descriptor = os.open(folder / "room", os.O_WRONLY | os.O_CREAT)
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        finally:
            os.close(descriptor)
            os.unlink(folder / "room")
    except OSError as error:
        raise DeviceError(
            f"compiling needs {nbytes} bytes in the temporary folder {folder.parent}: "
            f"{error.strerror}; free some space, raise the limit (ulimit -f), or point TMPDIR at a "
            "larger folder"
        ) from error
    try:
        mmap.mmap(-1, memory).close()
    except (OSError, MemoryError, ValueError) as error:
        raise DeviceError(
            f"compiling needs {memory} bytes of memory, which this process cannot have; free "
            "some, or raise the limit (ulimit -v)"
        ) from error
