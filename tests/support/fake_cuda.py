"""An NVIDIA driver that is made up: answers as the real one does, and keeps what it was asked."""

import ctypes
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm_ffi

from nmcompile.kernels.cuda.build import Cubin, CudaSource, Launch
from nmcompile.runtime import gpu, native, session
from nmcompile.runtime.cuda import Cuda
from nmcompile.runtime.native import native_runtime
from tests.support.cuda_emulator.run import run_emulated

Array = npt.NDArray[Any]
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class Driver:
    """A status of 0, and values by reference. Its memory is the CPU's, its clock counts events.

    failing: a function that answers with 999.
    log: (function, handles) of what happens on streams, in order.
    times: milliseconds at which the events that are not destroyed were recorded.
    cost: milliseconds that a launch takes; broken: whether it spoils what it writes.
    arrays: memory that is not freed, by address.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (8, 0),
        memory: int = 40 << 30,
        count: int = 1,
        failing: str = "",
        cuda: int = 13000,
    ) -> None:
        self.cuda = cuda
        self.capability, self.memory, self.count, self.failing = capability, memory, count, failing
        self.log: list[tuple[Any, ...]] = []
        self.contexts = 0
        self._handles = itertools.count(1000)
        self.times: dict[int, float] = {}
        self.now_ms = 0.0
        self.cost: Callable[[Launch], float] = lambda launch: 0.0
        self.broken: Callable[[Launch], bool] = lambda launch: False
        self.arrays: dict[int, Array] = {}
        self._sources: dict[int, str] = {}
        self._kernels: dict[int, tuple[str, str]] = {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        def answer(*arguments: Any) -> int:
            if name == self.failing:
                return 999
            return int(getattr(type(self), f"_{name}")(self, *arguments) or 0)

        if not name.startswith("cu"):
            raise AttributeError(name)
        return answer

    # ---- Devices

    def _cuInit(self, flags: int) -> None: ...

    def _cuDriverGetVersion(self, out: Any) -> None:
        out._obj.value = self.cuda

    def _cuDeviceGetCount(self, out: Any) -> None:
        out._obj.value = self.count

    def _cuDeviceGet(self, out: Any, index: int) -> None:
        out._obj.value = index

    def _cuDeviceGetName(self, name: Any, length: int, device: Any) -> None:
        name.value = b"NVIDIA Imaginary"

    def _cuDeviceTotalMem_v2(self, out: Any, device: Any) -> None:
        out._obj.value = self.memory

    def _cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> None:
        out._obj.value = self.capability[{75: 0, 76: 1}[attribute]]

    # ---- Context

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> None:
        out._obj.value = 1

    def _cuCtxPushCurrent_v2(self, context: Any) -> None:
        assert context.value == 1
        self.contexts += 1

    def _cuCtxPopCurrent_v2(self, out: Any) -> int:
        self.contexts -= 1
        return 0 if self.contexts >= 0 else NO_CONTEXT

    # ---- Streams and events

    def _cuEventCreate(self, out: Any, flags: int) -> int:
        out._obj.value = next(self._handles)
        return 0 if self.contexts else NO_CONTEXT

    def _cuEventRecord(self, event: Any, stream: Any) -> None:
        self.now_ms += 1.0
        self.times[event.value] = self.now_ms
        self.log.append(("record", event.value, stream.value or 0))

    def _cuEventDestroy_v2(self, event: Any) -> None:
        del self.times[event.value]

    def _cuEventSynchronize(self, event: Any) -> None:
        assert event.value in self.times

    def _cuEventElapsedTime(self, out: Any, start: Any, end: Any) -> None:
        out._obj.value = self.times[end.value] - self.times[start.value]

    def _cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        self.log.append(("wait", stream.value or 0, event.value))

    def _cuStreamSynchronize(self, stream: Any) -> None:
        self.log.append(("synchronize", stream.value or 0))

    def _cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> None:
        ctypes.memmove(target.value, source.value, nbytes.value)
        self.log.append(("copy", stream.value or 0))

    # ---- Memory and kernels: machine code is what `as_source` makes, and runs in the emulator

    def _cuMemAlloc_v2(self, out: Any, nbytes: Any) -> int:
        array = np.full(nbytes.value, 0xFF, np.uint8)  # NaN in float16
        self.arrays[array.ctypes.data] = array
        out._obj.value = array.ctypes.data
        return 0 if nbytes.value < self.memory else 2

    def _cuMemFree_v2(self, address: Any) -> None:
        del self.arrays[address.value]

    def _cuMemcpyHtoD_v2(self, target: Any, source: Any, nbytes: Any) -> None:
        ctypes.memmove(target.value, source.value, nbytes.value)

    def _cuMemcpyDtoH_v2(self, target: Any, source: Any, nbytes: Any) -> None:
        ctypes.memmove(target.value, source.value, nbytes.value)

    def _cuMemsetD8Async(self, address: Any, value: Any, nbytes: Any, stream: Any) -> None:
        self.arrays[address.value][: nbytes.value] = value.value

    def _cuModuleLoadData(self, out: Any, data: Any) -> None:
        out._obj.value = handle = next(self._handles)
        self._sources[handle] = data.value.decode()

    def _cuModuleUnload(self, module: Any) -> None:
        del self._sources[module.value]

    def _cuModuleGetFunction(self, out: Any, module: Any, name: Any) -> None:
        out._obj.value = handle = next(self._handles)
        self._kernels[handle] = (name.value.decode(), self._sources[module.value])

    def _cuFuncSetAttribute(self, function: Any, attribute: int, value: Any) -> int:
        room = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227}[self.capability] << 10
        return 0 if attribute == 8 and value.value <= room else 1

    def _cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        *extents, shared, _, pointers, _ = rest
        x, y, z, *block = (extent.value for extent in extents)
        places = [ctypes.cast(p, ctypes.POINTER(ctypes.c_uint64))[0] for p in pointers]
        names = tuple(f"p{index}" for index in range(len(places)))
        kernel, text = self._kernels[function.value]
        launch = Launch(kernel, names, (x, y, z), (block[0], block[1], block[2]), shared.value)
        buffers = {name: self.arrays[place] for name, place in zip(names, places, strict=True)}
        before = {name: array.copy() for name, array in buffers.items()}
        run_emulated(CudaSource(text, (launch,)), buffers)
        for name, array in buffers.items():
            if self.broken(launch) and (array != before[name]).any():
                array[: array.size // 2] = 0
        self.now_ms += self.cost(launch)


def as_source(source: str, arch: str) -> Cubin:
    """In place of `compile_cubin`, for a `Driver`."""
    return Cubin(source.encode(), {})


def use_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    """Let all of the runtime find this driver."""
    monkeypatch.setattr(gpu, "_driver", lambda: driver)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> list[int]:
    """Sessions of GPU artifacts run their library on the CPU; the streams that they run on."""
    use_driver(monkeypatch, driver)
    streams: list[int] = []

    @contextmanager
    def on_stream(device: Any, stream: int) -> Iterator[None]:
        streams.append(stream)
        with tvm_ffi.use_raw_stream(device, stream):
            yield

    here = tvm_ffi.device("cpu", 0)
    pretended = dataclasses.replace(
        native_runtime(), device=lambda kind, index: here, use_stream=on_stream
    )
    monkeypatch.setattr(native, "_CUDA", 1)
    monkeypatch.setattr(session, "native_runtime", lambda: pretended)
    monkeypatch.setattr(session, "load_gpu_runtime", lambda: None)
    monkeypatch.setattr(session, "open_cuda", Cuda)
    return streams
