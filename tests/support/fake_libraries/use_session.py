"""Loads and runs an artifact for a GPU beside `cuda.c`, and prints what that was asked for.

A program of its own, because the libraries are found by LD_LIBRARY_PATH.
"""

import ctypes
import json
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from nmcompile import runtime
from nmcompile.runtime.native import native_runtime

driver = ctypes.CDLL("libcuda.so.1")
driver.fake_take_log.restype = ctypes.c_char_p
found: dict[str, Any] = {}


def keep(name: str) -> None:
    """The log since the last time, under a name."""
    found[name] = driver.fake_take_log().decode().split("\n")[:-1]


session = runtime.load(sys.argv[1])
keep("load")
(spec,) = session.inputs
x = np.ones(spec.shape, np.float32)
for name in ("first", "second"):
    found["shapes"] = [list(y.shape) for y in session.run(x).values()]
    keep(name)

native = native_runtime()
shape, device = native.shape(spec.shape), native.device("cuda", 0)
on_gpu = native.allocate(shape, native.dtype("float32"), device, None)
result = session.run(on_gpu)
found["devices"] = [list(map(int, y.__dlpack_device__())) for y in result.values()]
del result
keep("on the GPU")


class Tensor:
    """One of a torch that is made up, too, and launches on a stream of its own."""

    def __init__(self, inner: Any) -> None:
        self.__dlpack_device__, self.__dlpack__ = inner.__dlpack_device__, inner.__dlpack__


stream = SimpleNamespace(cuda_stream=0x77)
torch: Any = SimpleNamespace(
    Tensor=Tensor, from_dlpack=Tensor, cuda=SimpleNamespace(current_stream=lambda index: stream)
)
sys.modules["torch"] = torch
found["kinds"] = [type(y) is Tensor for y in session.run(Tensor(on_gpu)).values()]
keep("torch")

times = session.profile(x, repeats=2)
found["layers"] = [(time.symbol, time.layer, time.ms) for time in times]
keep("profile")

errors: list[str] = []


def work() -> None:
    """The first thread to come captures the graph of the session."""
    try:
        for _ in range(5):
            session.run(x)
    except Exception as error:
        errors.append(repr(error))


threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
keep("threads")
print(json.dumps(found | {"errors": errors}))
