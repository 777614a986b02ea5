"""Kernels on the GPU at hand, launched through the NVIDIA driver alone: for the tuner and tests.

Not run on a machine with a GPU yet: tests use a driver of theirs, which runs the CUDA source in an
emulator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.kernels.cuda.build import Cubin, CudaSource
from nmcompile.runtime.cuda import Cuda

Array = npt.NDArray[Any]

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_STREAM = 0  # the legacy default stream


class Memory:
    """Arrays in the GPU's memory by address, which are freed together."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._taken: list[int] = []

    def room(self, nbytes: int) -> int:
        """The address of new memory, whatever it holds.

        Raises:
            DeviceError: there is not so much.
        """
        address = ctypes.c_uint64()
        self._cuda.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(nbytes, 1)))
        self._taken.append(address.value)
        return address.value

    def hold(self, array: Array) -> int:
        """The address of a copy of a contiguous array."""
        address = self.room(array.nbytes)
        self._cuda.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )
        return address

    def read(self, address: int, array: Array) -> None:
        """Fill a contiguous array with what an address holds, once all launches are done."""
        self._cuda.call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )

    def fill(self, address: int, nbytes: int) -> None:
        """Write zeros."""
        self._cuda.call(
            "cuMemsetD8Async",
            ctypes.c_uint64(address),
            ctypes.c_ubyte(0),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(_STREAM),
        )

    def free(self) -> None:
        """Give everything back."""
        while self._taken:
            self._cuda.call("cuMemFree_v2", ctypes.c_uint64(self._taken.pop()))


@contextmanager
def gpu_memory(cuda: Cuda) -> Iterator[Memory]:
    """Memory for as long as this lasts; nobody else of this process launches meanwhile."""
    with cuda.launching_on(_STREAM):
        memory = Memory(cuda)
        try:
            yield memory
        finally:
            memory.free()


class LoadedKernels:
    """The kernels of one function, and how they are launched."""

    def __init__(self, cuda: Cuda, source: CudaSource, cubin: Cubin) -> None:
        """Load the machine code.

        Raises:
            DeviceError: it is not for this GPU, or a block needs more shared memory than there is.
        """
        self._cuda, self._launches = cuda, source.launches
        self._module = ctypes.c_void_p()
        cuda.call("cuModuleLoadData", ctypes.byref(self._module), ctypes.c_char_p(cubin.data))
        self._functions = []
        for launch in source.launches:
            function, name = ctypes.c_void_p(), ctypes.c_char_p(launch.kernel.encode())
            cuda.call("cuModuleGetFunction", ctypes.byref(function), self._module, name)
            shared = launch.shared_bytes
            cuda.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, ctypes.c_int(shared))
            self._functions.append(function)

    def launch(self, addresses: Mapping[str, int]) -> None:
        """Launch all kernels, in order, over arrays by the names of the function's buffers."""
        for function, launch in zip(self._functions, self._launches, strict=True):
            values = [ctypes.c_uint64(addresses[name]) for name in launch.arguments]
            pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values]
            self._cuda.call(
                "cuLaunchKernel",
                function,
                *(ctypes.c_uint(extent) for extent in (*launch.grid, *launch.block)),
                ctypes.c_uint(launch.shared_bytes),
                ctypes.c_void_p(_STREAM),
                (ctypes.c_void_p * len(pointers))(*pointers),
                None,
            )

    def unload(self) -> None:
        """Let go of the machine code, once all launches are done."""
        self._cuda.call("cuModuleUnload", self._module)


def run_on_gpu(cuda: Cuda, source: CudaSource, cubin: Cubin, buffers: Mapping[str, Array]) -> None:
    """Launch all kernels of a source; `buffers` are contiguous and changed in place.

    Raises:
        DeviceError: the GPU cannot run them, or fails.
    """
    with gpu_memory(cuda) as memory:
        addresses = {name: memory.hold(array) for name, array in buffers.items()}
        kernels = LoadedKernels(cuda, source, cubin)
        kernels.launch(addresses)
        cuda.synchronize(_STREAM)
        for name, array in buffers.items():
            memory.read(addresses[name], np.asarray(array))
        kernels.unload()
