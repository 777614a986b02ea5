"""The CUDA driver's API, as far as kernels are launched and timed here.

Kernels are launched without TVM: what is measured is the machine code alone, torch's streams are
taken as they are, and a machine whose TVM does not load still gives the figures of the layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import DeviceError
from nmcompile.runtime import gpu

Array = npt.NDArray[Any]

_SMS, _L2 = 16, 38  # CU_DEVICE_ATTRIBUTE_*
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_NON_BLOCKING, _THREAD_LOCAL = 1, 1  # of streams, of captures
_INT, _SIZE, _HANDLE = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_ADDRESS, _COUNT = ctypes.c_uint64, ctypes.c_uint
_OUT = ctypes.c_void_p  # where the driver writes a result

_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_COUNT,),
    "cuDeviceGet": (_OUT, _INT),
    "cuDeviceGetAttribute": (_OUT, _INT, _INT),
    "cuDriverGetVersion": (_OUT,),
    "cuDevicePrimaryCtxRetain": (_OUT, _INT),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (_OUT, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemcpyHtoD_v2": (_ADDRESS, _HANDLE, _SIZE),
    "cuMemcpyDtoH_v2": (_HANDLE, _ADDRESS, _SIZE),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, _SIZE, _HANDLE),
    "cuMemsetD8_v2": (_ADDRESS, ctypes.c_ubyte, _SIZE),
    "cuStreamCreate": (_OUT, _COUNT),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, _INT),
    "cuStreamEndCapture": (_HANDLE, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
    "cuEventCreate": (_OUT, _COUNT),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (_OUT, _HANDLE, _HANDLE),
    "cuModuleLoadData": (_OUT, _HANDLE),
    "cuModuleUnload": (_HANDLE,),
    "cuModuleGetFunction": (_OUT, _HANDLE, ctypes.c_char_p),
    "cuFuncSetAttribute": (_HANDLE, _INT, _INT),
    "cuLaunchKernel": (_HANDLE, *[_COUNT] * 7, _HANDLE, _HANDLE, _HANDLE),
    "cuGetErrorName": (_INT, _OUT),
}


class DriverError(Exception):
    """The driver refused a call, or reports that a kernel launched before it has failed."""


@dataclass(frozen=True)
class Buffer:
    """Memory of the GPU: address and bytes."""

    address: int
    nbytes: int


@dataclass(frozen=True)
class Loaded:
    """A kernel's function with the module that it lives in."""

    module: int
    function: int


class Graph:
    """Launches captured once, replayed as often as wanted."""

    def __init__(self, device: Device, handle: int) -> None:
        self._device, self._handle = device, handle

    def launch(self) -> None:
        """Replay on the device's stream."""
        self._device.call("cuGraphLaunch", self._handle, self._device.stream)

    def close(self) -> None:
        """Free it."""
        self._device.call("cuGraphExecDestroy", self._handle)


class Device:
    """GPU 0, in its primary context, which torch uses too.

    name, sms, l2_bytes, memory: of the GPU; arch: the kind of machine code that it runs, or "".
    stream: what everything is launched on; `use` exchanges it.
    """

    def __init__(self) -> None:
        found = gpu.host()
        self.name, self.memory = found.name, found.memory
        self.capability = f"{found.major}.{found.minor}"
        self.arch = gpu.kind_of(found) or ""
        self._lib = ctypes.CDLL(gpu.DRIVER)
        for name, arguments in _PROTOTYPES.items():
            function = getattr(self._lib, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self.call("cuInit", 0)
        number = self._int("cuDeviceGet", 0)
        self.sms = self._int("cuDeviceGetAttribute", _SMS, number)
        self.l2_bytes = self._int("cuDeviceGetAttribute", _L2, number)
        self.driver = self._int("cuDriverGetVersion")
        self.call("cuCtxSetCurrent", self._handle("cuDevicePrimaryCtxRetain", number))
        self.stream = self._handle("cuStreamCreate", _NON_BLOCKING)

    def call(self, function: str, *arguments: Any) -> None:
        """Call the driver.

        Raises:
            DriverError: it answers with an error.
        """
        status = getattr(self._lib, function)(*arguments)
        if status:
            name = ctypes.c_char_p()
            self._lib.cuGetErrorName(status, ctypes.byref(name))
            text = (name.value or b"unknown error").decode()
            raise DriverError(f"{function}: {text} ({status})")

    def _handle(self, function: str, *arguments: Any) -> int:
        result = ctypes.c_void_p()
        self.call(function, ctypes.byref(result), *arguments)
        return result.value or 0

    def _int(self, function: str, *arguments: Any) -> int:
        result = ctypes.c_int()
        self.call(function, ctypes.byref(result), *arguments)
        return result.value

    # Memory.

    def allocate(self, nbytes: int) -> Buffer:
        """New memory, not initialised."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        return Buffer(address.value, nbytes)

    def free(self, buffer: Buffer) -> None:
        """Give memory back."""
        self.call("cuMemFree_v2", buffer.address)

    def upload(self, array: Array) -> Buffer:
        """A copy of a contiguous array."""
        buffer = self.allocate(array.nbytes)
        self.call("cuMemcpyHtoD_v2", buffer.address, array.ctypes.data, array.nbytes)
        self.synchronize()  # the last piece may be under way, and the stream waits for nobody
        return buffer

    def download(self, buffer: Buffer, shape: tuple[int, ...], dtype: str) -> Array:
        """The content, once everything that was launched is done."""
        self.synchronize()
        array = np.empty(shape, dtype)
        self.call("cuMemcpyDtoH_v2", array.ctypes.data, buffer.address, array.nbytes)
        return array

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy within the GPU's memory, on the stream."""
        self.call(
            "cuMemcpyDtoDAsync_v2", target.address, source.address, source.nbytes, self.stream
        )

    def poison(self, buffer: Buffer) -> None:
        """Fill with ones: NaN in every floating-point type."""
        self.call("cuMemsetD8_v2", buffer.address, 0xFF, buffer.nbytes)
        self.call("cuCtxSynchronize")

    # Kernels.

    def load(self, cubin: bytes, kernel: str, shared_bytes: int) -> Loaded:
        """Load one kernel's machine code, allowed its dynamic shared memory."""
        module = self._handle("cuModuleLoadData", ctypes.c_char_p(cubin))
        function = self._handle("cuModuleGetFunction", module, kernel.encode())
        self.call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared_bytes)
        return Loaded(module, function)

    def unload(self, loaded: Loaded) -> None:
        """Forget the machine code."""
        self.call("cuModuleUnload", loaded.module)

    def launch(
        self,
        loaded: Loaded,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        addresses: list[int],
    ) -> None:
        """Launch a kernel whose parameters are pointers."""
        values = (ctypes.c_uint64 * len(addresses))(*addresses)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(addresses))(
            *(start + 8 * index for index in range(len(addresses)))
        )
        self.call(
            *("cuLaunchKernel", loaded.function, *grid, *block, shared_bytes, self.stream),
            *(pointers, None),
        )

    # Streams and time.

    @contextmanager
    def use(self, stream: int) -> Iterator[None]:
        """Launch on another stream; 0 is the one that TVM and torch take by default."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def synchronize(self) -> None:
        """Wait for everything; errors of kernels come up here."""
        self.call("cuCtxSynchronize")

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """A graph of what `enqueue` launches on the stream."""
        self.call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            enqueue()
        finally:
            graph = self._handle_of_capture()
        executable = ctypes.c_void_p()
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        self.call("cuGraphDestroy", graph)
        return Graph(self, executable.value or 0)

    def _handle_of_capture(self) -> int:
        graph = ctypes.c_void_p()
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        return graph.value or 0

    def event(self) -> int:
        """A new event."""
        return self._handle("cuEventCreate", 0)

    def record(self, event: int) -> None:
        """Let the stream reach an event."""
        self.call("cuEventRecord", event, self.stream)

    def elapsed(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events, once the second is reached."""
        self.call("cuEventSynchronize", end)
        result = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(result), start, end)
        return result.value


def is_missing() -> str | None:
    """Why nothing can run here: no driver, no GPU, or none that kernels are made for."""
    try:
        found = gpu.host()
    except DeviceError as error:
        return str(error)
    if gpu.kind_of(found) is None:
        wanted = ", ".join(map(str, gpu.KINDS.values()))
        return (
            f"{found.name} has compute capability {found.major}.{found.minor}; the kit has machine "
            f"code for {wanted}"
        )
    return None
