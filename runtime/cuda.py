"""The NVIDIA driver's streams and events, as far as sessions need them.

Everything acts on the primary context of GPU 0, which TVM and torch use too. Streams are the
driver's handles, which are those of CUDA's runtime as well; 0 is the legacy default stream. Not run
on a machine with a GPU yet: tests use a driver of theirs.
"""

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nmcompile.runtime import gpu

Event = ctypes.c_void_p


class Cuda:
    """GPU 0's context, and the streams that this process has launched work of ours on."""

    def __init__(self) -> None:
        """Keep the context alive for as long as the process lives.

        Raises:
            DeviceError: there is no driver, no GPU, or the driver does not answer.
        """
        self._driver, device = gpu.first_device()
        self._context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._lock = threading.Lock()
        self._streams: set[int] = set()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            DeviceError: it answers with an error.
        """
        gpu.ask(self._driver, function, *arguments)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context the calling thread's, whose own one comes back afterwards."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @contextmanager
    def launching_on(self, stream: int) -> Iterator[None]:
        """Let one thread at a time launch work, behind all that was launched on other streams.

        TVM takes memory from one pool, whatever the stream: what a run has given back, the next one
        gets, and must not write while the first still reads. And while one thread captures a CUDA
        graph, no other may allocate.
        """
        with self._lock, self.current():
            for other in self._streams - {stream}:
                event = self.record(other)
                self.call("cuStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
                self.forget(event)
            self._streams.add(stream)
            yield

    def record(self, stream: int) -> Event:
        """A new event behind everything that was launched on a stream so far."""
        event = Event()
        self.call("cuEventCreate", ctypes.byref(event), 0)
        self.call("cuEventRecord", event, ctypes.c_void_p(stream))
        return event

    def forget(self, event: Event) -> None:
        """Destroy an event, as soon as nothing waits for it."""
        self.call("cuEventDestroy_v2", event)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds of the GPU's clock between two events, once the second has happened."""
        self.call("cuEventSynchronize", end)
        milliseconds = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value

    def synchronize(self, stream: int) -> None:
        """Wait until everything that was launched on a stream is done."""
        self.call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy bytes between addresses in the GPU's memory, in the order of a stream."""
        self.call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )


@functools.cache
def open_cuda() -> Cuda:
    """The one of this process.

    Raises:
        DeviceError: as `Cuda`.
    """
    return Cuda()
