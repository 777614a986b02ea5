"""Arrays between pages that nobody may touch: a kernel that leaves one ends the process."""

import ctypes
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ALIGN = 64  # bytes, as TVM wants its tensors


def between_guards(array: Array) -> Array:
    """A copy that ends less than `ALIGN` bytes before a page without access, one before it too."""
    page = mmap.PAGESIZE
    pages = -(-max(array.nbytes, 1) // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (first, first + (pages + 1) * page):
        assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    start = (pages + 1) * page - -(-array.nbytes // ALIGN) * ALIGN
    copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    return copy
