"""Memory behind which nothing can be read: who does ends the process."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

PROT_NONE = 0


class Fenced(np.ndarray[Any, Any]):
    """An array around which nothing can be read."""


@contextlib.contextmanager
def guarded(array: npt.NDArray[Any]) -> Iterator[Fenced]:
    """A copy that ends where a page does, behind which there is one that cannot be read.

    It begins on a cache line, so its size has to be a multiple of one.
    """
    pages = -(-array.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    end = pages * mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    fence = ctypes.c_void_p(whole.ctypes.data + end)
    if protect(fence, ctypes.c_size_t(mmap.PAGESIZE), PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = whole[end - array.nbytes : end].view(array.dtype).reshape(array.shape).view(Fenced)
    copy[...] = array
    try:
        yield copy
    finally:
        protect(fence, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
