"""From a TIR function to CUDA source, and from there to a cubin, on a machine without a GPU.

TVM writes the source; nvcc is called here. TVM itself calls it only where the NVIDIA driver is
installed, and otherwise keeps the source without a word.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from nmcompile.errors import TargetError
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.runtime.files import scratch_folder

# Fast math: results are rounded to float16, whose error is a thousand times larger.
NVCC_FLAGS = ("-O3", "-w", "--use_fast_math", "-Xptxas", "-v")
_COMPILE_CALLBACK = "tvm_callback_cuda_compile"
_AXES = ("x", "y", "z")
_SHARED = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: grid and block in threads along x, y, z.

    arguments: the names of the function's buffers, in the order of the kernel's parameters.
    shared_bytes: dynamic shared memory.
    """

    kernel: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ of a function's kernels, and how the function launches them, in order."""

    text: str
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Resources:
    """What ptxas gave a kernel, per thread: registers, and bytes spilled to memory."""

    registers: int
    spilled: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture, and the resources of each of its kernels."""

    data: bytes
    resources: dict[str, Resources]


def find_nvcc() -> str:
    """The path of nvcc.

    Raises:
        TargetError: it is not installed.
    """
    path = shutil.which("nvcc")
    if path is None:
        raise TargetError(
            "compiling for a GPU needs nvcc on this machine (no GPU or driver, and not on the "
            "machine that runs the artifact); found none on PATH: install the CUDA toolkit 12.5 or "
            "later (https://developer.nvidia.com/cuda-downloads), and put its bin folder on PATH"
        )
    return path


def cuda_source(func: Any, arch: str) -> CudaSource:
    """The CUDA source of a TIR function with thread bindings.

    Args:
        func: a PrimFunc whose launches have constant extents.
        arch: `sm_80`, `sm_90a`, ...
    """
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    module = tirx.transform.BindTarget(target)(module)
    lower, _, finish_device = tirx.get_tir_pipeline(TIR_PIPELINE)
    with target:
        host, devices = split_host_device_mods(lower(module))
        ((device_target, device),) = devices.items()
        sources: list[str] = []

        def collect(code: str, *rest: Any) -> bytes:
            sources.append(code)
            return b""

        with compiling_with(collect):
            built = codegen_build(finish_device()(device), device_target)
    text = sources[0] if sources else built.inspect_source("cuda")
    return CudaSource(text, tuple(_launches(host, device)))


def compile_cubin(source: str, arch: str) -> Cubin:
    """Compile CUDA source for one architecture.

    Raises:
        TargetError: nvcc is missing, or does not compile the source for this architecture.
    """
    nvcc = find_nvcc()
    with scratch_folder() as folder:
        path, out = folder / "kernel.cu", folder / "kernel.cubin"
        path.write_text(source)
        command = [nvcc, "-cubin", f"-arch={arch}", *NVCC_FLAGS, "-o", str(out), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TargetError(
                f"{nvcc} could not compile a kernel for {arch}: expected CUDA 12.5 or later, which "
                f"knows ordered sparsity metadata; it says:\n{done.stderr.strip()[-2000:]}"
            )
        return Cubin(out.read_bytes(), _resources(done.stdout + done.stderr))


@contextmanager
def compiling_with(compiler: Callable[..., bytes]) -> Iterator[None]:
    """Where TVM finds a driver and would compile CUDA source itself, it calls this instead."""
    before = tvm_ffi.get_global_func(_COMPILE_CALLBACK)
    tvm_ffi.register_global_func(_COMPILE_CALLBACK, compiler, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_COMPILE_CALLBACK, before, override=True)


def _launches(host: Any, device: Any) -> Iterator[Launch]:
    """The launches in the host function, in order.

    A launch is a call (kernel, arguments, extents), whose last extent is the shared memory.
    """
    names = {var.name_hint: func for var, func in device.functions.items()}
    calls: list[Any] = []

    def visit(node: Any) -> None:
        if getattr(node.op, "name", "") == "tirx.call_ffi_kernel":
            calls.append(node)

    for func in host.functions.values():
        tvm_ffi.structural_walk(func.body, (tvm.ir.Call, visit))
    for call in calls:
        kernel = str(call.args[0].value)
        func = names[kernel]
        parameters = [_buffer_name(param) for param in func.params]
        tags = [str(tag) for tag in func.attrs["tirx.kernel_launch_params"]]
        extents = dict(
            zip(tags, (int(arg) for arg in call.args[1 + len(parameters) :]), strict=True)
        )
        grid, block = (
            tuple(extents.get(f"{scope}.{axis}", 1) for axis in _AXES)
            for scope in ("blockIdx", "threadIdx")
        )
        shared = extents.get(_SHARED, 0)
        yield Launch(kernel, tuple(parameters), _triple(grid), _triple(block), shared)


def _triple(extents: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = extents
    return x, y, z


def _buffer_name(parameter: Any) -> str:
    return str(parameter.name).removesuffix("_ptr").removesuffix("_flat")


def _resources(log: str) -> dict[str, Resources]:
    """Read the report of `ptxas -v`."""
    found: dict[str, Resources] = {}
    for entry in log.split("Compiling entry function '")[1:]:
        stores = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        used = re.search(r"Used (\d+) registers", entry)
        if stores is not None and used is not None:
            spilled = int(stores[1]) + int(stores[2])
            found[entry.split("'")[0]] = Resources(int(used[1]), spilled)
    return found
