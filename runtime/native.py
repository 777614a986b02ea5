"""TVM's runtime library, loaded without TVM's compiler, and its thread pool.

`import tvm` decides once per process between the compiler and a runtime-only mode, so a program
that loads an artifact first could compile nothing afterwards. Going through `tvm_ffi` and
`libtvm_runtime` alone leaves that choice open: `import tvm` finds the library already there.
"""

import ctypes
import importlib.abc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nmcompile.errors import DeviceError
from nmcompile.runtime.gpu import CUDA

_CPU, _CUDA = 1, 2  # DLPack's device types, also what vm_initialization expects
CUDART = f"libcudart.so.{CUDA}"
_POOLED = 2  # the VM's allocator that keeps freed blocks for the next run
_OWN = Path(__file__).parent / "lib"  # TVM's libraries in a wheel; those of TVM itself come first

_lock = threading.Lock()
_loaded: "NativeRuntime | None" = None


@dataclass(frozen=True)
class NativeRuntime:
    """The functions of TVM's runtime that sessions use."""

    tensor: type
    from_dlpack: Callable[[Any], Any]
    create_view: Callable[[Any, Any, Any, int], Any]
    shape: Callable[[tuple[int, ...]], Any]
    dtype: Callable[[str], Any]
    load_library: Callable[[str, str], Any]
    num_threads: Callable[[], int]
    config_threadpool: Callable[[int, int], Any]
    set_concurrency: Callable[[int], None]
    device: Callable[[str, int], Any]
    allocate: Callable[[Any, Any, Any, str | None], Any]
    copy_from_bytes: Callable[[Any, Any, int], Any]
    copy_to_bytes: Callable[[Any, Any, int], Any]
    use_stream: Callable[[Any, int], AbstractContextManager[Any]]
    current_stream: Callable[[Any], int]

    def reinterpret(self, tensor: Any, dtype: str) -> Any:
        """Return the contiguous `tensor` seen as another dtype of the same size."""
        return self.create_view(tensor, self.shape(tuple(tensor.shape)), self.dtype(dtype), 0)

    def load_module(self, path: str) -> Any:
        """Load a shared library; it is unloaded with the last reference to it and its functions."""
        return self.load_library(path, "so")

    def virtual_machine(self, module: Any, gpu: bool = False) -> Any:
        """Return a new Relax VM on the CPU or on GPU 0 over a loaded library; one per thread."""
        machine = module["vm_load_executable"]()
        first = (_CUDA, 0, _POOLED) if gpu else ()
        machine["vm_initialization"](*first, _CPU, 0, _POOLED)
        return machine

    def on_stream(self, stream: int) -> AbstractContextManager[Any]:
        """Launch what the calling thread launches on GPU 0 on a stream, by its handle."""
        return self.use_stream(self.device("cuda", 0), stream)

    def stream(self) -> int:
        """The stream of GPU 0 that the calling thread launches on."""
        return self.current_stream(self.device("cuda", 0))

    def use_threads(self, count: int) -> bool:
        """Make the calling thread's pool run `count` threads; whether it has that many."""
        if self.num_threads() == count:
            return True
        self.config_threadpool(1, count)
        return self.num_threads() == count


def available_threads() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """Return how many threads to use when nobody says: all cores, or fewer if TVM is told so."""
    limit = os.environ.get("TVM_NUM_THREADS", "")
    available = available_threads()
    return min(available, int(limit)) if limit.isdecimal() and int(limit) > 0 else available


def configure_environment() -> None:
    """Set what TVM reads from the environment when it creates a thread pool; keeps what is set.

    TVM takes half of the cores as a pool's first and largest size, so it is asked for all of them:
    what runs in the main thread can then use any smaller number. Its workers are not pinned to
    cores, because two pools would be pinned to the same ones. Loading an artifact calls this; a
    program that runs TVM kernels earlier does well to call it before.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(available_threads()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")


def native_runtime() -> NativeRuntime:
    """Return TVM's runtime, loading it at the first call.

    Raises:
        DeviceError: TVM is not installed, or its runtime library cannot be loaded.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            configure_environment()
            try:
                _loaded = _load()
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                raise DeviceError(
                    f"TVM's runtime cannot be loaded ({error}); {_advice()}"
                ) from error
        return _loaded


def _load() -> NativeRuntime:
    with torch_hidden():
        import tvm_ffi
    function = tvm_ffi.get_global_func
    if function("runtime.NumThreads", allow_missing=True) is None:
        # The same search as TVM's own, so that both find the same file.
        tvm_ffi.libinfo.load_lib_ctypes(
            "tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=library_folders()
        )
    return NativeRuntime(
        tensor=tvm_ffi.Tensor,
        from_dlpack=tvm_ffi.from_dlpack,
        create_view=function("runtime.TVMTensorCreateView"),
        shape=tvm_ffi.Shape,
        dtype=tvm_ffi.dtype,
        load_library=function("ffi.Module.load_from_file.so"),
        num_threads=function("runtime.NumThreads"),
        config_threadpool=function("runtime.config_threadpool"),
        set_concurrency=_set_concurrency(),
        device=tvm_ffi.device,
        allocate=function("runtime.TVMTensorAllocWithScope"),
        copy_from_bytes=function("runtime.TVMTensorCopyFromBytes"),
        copy_to_bytes=function("runtime.TVMTensorCopyToBytes"),
        use_stream=tvm_ffi.use_raw_stream,
        current_stream=tvm_ffi.get_raw_stream,
    )


def _set_concurrency() -> Callable[[int], None]:
    """What tells TVM how many threads a pool of the calling thread has; 0 is the environment's.

    With 1 a library makes no pool at all. It is a function of C++ that nothing else hands out.

    Raises:
        OSError: this version of TVM has none.
    """
    try:
        # It holds the interpreter's lock: letting go of it takes longer than the function.
        function = ctypes.PyDLL(None)._ZN3tvm7runtime9threading17SetMaxConcurrencyEi
    except AttributeError as error:
        raise OSError("it has no function threading::SetMaxConcurrency") from error
    function.argtypes, function.restype = [ctypes.c_int], None
    return cast(Callable[[int], None], function)


def load_gpu_runtime() -> None:
    """Load TVM's CUDA runtime, and before it the CUDA library that it is linked with.

    Not run on a machine with a GPU yet.

    Raises:
        DeviceError: one of them is missing, or not for the installed driver.
    """
    import tvm_ffi

    native_runtime()
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    for path in cudart_paths():
        with suppress(OSError):
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            break
    try:
        tvm_ffi.libinfo.load_lib_ctypes(
            "tvm", "tvm_runtime_cuda", "RTLD_GLOBAL", extra_lib_paths=library_folders()
        )
    except (OSError, RuntimeError) as error:
        raise DeviceError(
            f"TVM's CUDA runtime cannot be loaded ({error}); it needs {CUDART}: pip install "
            "nvidia-cuda-runtime, or put the lib64 folder of the CUDA toolkit on LD_LIBRARY_PATH"
        ) from error


def cudart_paths() -> list[str]:
    """Where the CUDA runtime may be: in a bundle, where the loader looks, in NVIDIA's wheels."""
    bundled = [str(folder / CUDART) for folder in _bundled()]
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    wheels = [file for folder in folders for file in Path(folder).glob(f"*/lib/{CUDART}")]
    return [*bundled, CUDART, *map(str, wheels)]


def library_folders() -> list[Path]:
    """Where TVM's libraries may be.

    Raises:
        ModuleNotFoundError: there is no TVM.
    """
    if folders := _bundled():
        return folders
    if path := os.environ.get("TVM_LIBRARY_PATH"):
        folders.append(Path(path))
    spec = importlib.util.find_spec("tvm")  # finds the package without running it
    if spec is None or spec.origin is None:
        if not _OWN.is_dir():
            raise ModuleNotFoundError("No module named 'tvm'")
        return [*folders, _OWN]
    package = Path(spec.origin).parent
    return [*folders, package / "lib", *(package / ".." / ".." / p for p in ("build/lib", "lib"))]


def _advice() -> str:
    if _bundled():
        return "README.txt of this bundle says what it needs; copy the whole folder again"
    return "pip install 'apache-tvm>=0.27,<0.28' 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"


def _bundled() -> list[Path]:
    """The folder of TVM's libraries in what `nmc bundle` writes: beside tvm_ffi's, without TVM."""
    spec = importlib.util.find_spec("tvm_ffi")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "lib"
    return [folder] if (folder / "libtvm_runtime.so").is_file() else []


class _HideTorch(importlib.abc.MetaPathFinder):
    """Answers one thread's `import torch` with "not installed"; other threads see no change."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError("torch is not needed here", name=name)


@contextmanager
def torch_hidden() -> Iterator[None]:
    """Keep TVM, which imports torch when it finds it, from spending seconds on that.

    Torch tensors reach TVM through DLPack all the same, and torch can be imported afterwards.
    """
    finder = _HideTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
