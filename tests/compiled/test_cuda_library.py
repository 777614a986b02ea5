"""Machine code in the place of source in TVM's serialised modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nmcompile
from nmcompile import runtime
from nmcompile.errors import TargetError
from nmcompile.kernels.cuda.library import replace_source
from tests.conftest import missing_tool
from tests.support.fake_driver import fake_driver
from tests.support.tiny_models import tiny_net

SOURCE = "__global__ void k() {}"


def counted(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


def module_bytes(form: bytes, code: bytes) -> bytes:
    """A CUDA module between two others."""
    inner = counted(form) + b"signatures" + counted(code)
    body = b"before" + counted(b"cuda") + counted(inner) + b"after"
    return counted(body)


def test_source_becomes_machine_code() -> None:
    found = replace_source(module_bytes(b"cuda", SOURCE.encode()), SOURCE, lambda code: b"\x7fELF!")
    assert found == module_bytes(b"cubin", b"\x7fELF!")


def test_what_tvm_has_compiled_stays() -> None:
    blob = module_bytes(b"fatbin", b"machine code")
    assert replace_source(blob, SOURCE, lambda code: b"") is blob


def test_another_form_is_refused() -> None:
    blob = counted(b"before" + counted(SOURCE.encode()) + b"after")
    with pytest.raises(TargetError, match=r"serialised in another way .*apache-tvm>=0\.27,<0\.28"):
        replace_source(blob, SOURCE, lambda code: b"")


LOAD = """
import sys
from nmcompile.runtime import native
native.load_gpu_runtime()
module = native.native_runtime().load_module(sys.argv[1])
(host,) = module.imports
(cuda,) = host.imports
names = [name for name in sys.argv[2:] if cuda.implements_function(name)]
print(cuda.kind, int(module["vm_load_executable"]()["get_function_arity"]("main")), *names)
"""


@pytest.mark.tool("nvcc")
@pytest.mark.tool("gcc")
@pytest.mark.tool("nm")
def test_tvm_reads_the_kernels_where_there_is_a_driver(tmp_path: Path) -> None:
    path = tmp_path / "m.nmc"
    x = torch.randn(1, 3, 16, 16)
    nmcompile.compile(tiny_net("2:4"), output=path, target="sm_80", example_inputs=(x,))
    artifact = runtime.read_artifact(path)
    (tmp_path / "lib.so").write_bytes(artifact.library)
    kernels = {f"{call.symbol}_kernel" for call in artifact.manifest.calls}
    folders = f"{fake_driver(tmp_path)}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "lib.so", *kernels],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": folders},
    )
    if "libcudart" in done.stderr:
        missing_tool("libcudart.so.13", "put the CUDA toolkit's lib64 on LD_LIBRARY_PATH")
    kind, arity, *names = done.stdout.split()
    assert (kind, int(arity)) == ("cuda", 1 + len(artifact.params))
    assert set(names) == kernels
