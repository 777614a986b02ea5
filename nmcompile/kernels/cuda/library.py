"""A compiled model with GPU kernels, exported with machine code where TVM left source.

On a machine without an NVIDIA driver, TVM keeps the CUDA source of all kernels and would compile it
where the library is loaded, which needs nvcc there. Here nvcc has run already: the serialised
module inside the library is rewritten to hold its cubin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tvm_ffi

from nmcompile.errors import TargetError
from nmcompile.kernels.cuda.build import compile_cubin, compiling_with
from nmcompile.linking import link
from nmcompile.runtime.files import scratch_folder

_HOST = json.dumps({"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu"})  # whose object file
_SOURCE, _CUBIN = b"cuda", b"cubin"  # formats of TVM's CUDA module


def compiling_for(arch: str) -> AbstractContextManager[None]:
    """Where TVM finds a driver and compiles kernels itself: do it for `arch`, with our flags."""
    return compiling_with(lambda code, *rest: compile_cubin(code, arch).data)


def export(executable: Any, arch: str, path: Path) -> None:
    """Write the shared library of a Relax executable whose kernels are machine code for `arch`.

    Raises:
        TargetError: nvcc is missing or fails, or TVM's format is another than this one.
    """

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        tensor = tvm_ffi.get_global_func("runtime.ModulePackImportsToTensor")(module)
        blob = tensor.numpy().tobytes()
        for source in _cuda_sources(module):
            blob = replace_source(blob, source, lambda code: compile_cubin(code, arch).data)
        pack_bytes = tvm_ffi.get_global_func("codegen.codegen_blob")
        imports = os.path.join(folder, "imports.o")
        pack_bytes(blob, is_system_lib, _HOST, prefix).write_to_file(imports)
        return imports

    # TVM leaves the folder that it makes itself to the end of the process.
    with scratch_folder() as folder:
        executable.mod.export_library(
            os.fspath(path), fcompile=link, fpack_imports=pack, workspace_dir=str(folder)
        )


def _cuda_sources(module: Any) -> Iterator[str]:
    """The source of every CUDA module that holds source and not machine code."""
    for imported in module.imports:
        if imported.kind == "cuda":
            yield imported.inspect_source("cuda")
        yield from _cuda_sources(imported)


def replace_source(blob: bytes, source: str, compiler: Callable[[str], bytes]) -> bytes:
    """Exchange the source of one CUDA module in TVM's serialised imports for machine code.

    The blob is its length without this field, then the modules; a module is its kind and its
    bytes; those of a CUDA module are its format, the kernels' signatures and the code. Strings and
    bytes are preceded by their length, in 8 bytes. Where TVM has compiled already, the module has
    another format, and the blob is returned as it is.

    Raises:
        TargetError: the blob is not like that.
    """
    code = _counted(source.encode())
    end = blob.find(code)
    if end < 0:
        return blob
    end += len(code)
    opening = _counted(_SOURCE)  # the kind and the format have the same name
    body = blob.rfind(opening, 0, end - len(code))
    field = body - 8
    size = int.from_bytes(blob[field:body], "little")
    if blob[field - len(opening) : field] != opening or body + size != end:
        raise TargetError(
            "the CUDA module of this TVM is serialised in another way than that of TVM 0.27, "
            "which nmcompile knows: install 'apache-tvm>=0.27,<0.28'"
        )
    signatures = blob[body + len(opening) : end - len(code)]
    new = _counted(_CUBIN) + signatures + _counted(compiler(source))
    whole = blob[8:field] + len(new).to_bytes(8, "little") + new + blob[end:]
    return len(whole).to_bytes(8, "little") + whole


def _counted(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content
