"""Objects to libraries on a machine without a compiler."""

# TVMScript is not Python to a type checker: T.Buffer(...) is a value where a type should stand.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, valid-type"

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.script import tirx as T

import nmcompile
from nmcompile.errors import TargetError
from nmcompile.linking import link
from tests.support.tiny_models import conv_onnx, conv_weight

SHAPE = (8,)


def library_calling(function: str, path: Path) -> Path:
    """A library whose function `main` calls a C function of floats on each element."""

    @T.prim_func
    def main(x: T.Buffer(SHAPE, "float32"), y: T.Buffer(SHAPE, "float32")):
        for i in range(SHAPE[0]):
            y[i] = T.call_extern("float32", function, x[i])

    module = tvm.compile(tvm.IRModule({"main": main}), target="llvm")
    module.export_library(str(path), fcompile=link)
    return path


def test_a_model_is_compiled_without_any_program_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = conv_onnx(conv_weight())
    nmcompile.compile(model, output=tmp_path / "with.nmc")
    monkeypatch.setenv("PATH", "")
    nmcompile.compile(model, output=tmp_path / "without.nmc")
    assert (tmp_path / "without.nmc").read_bytes() == (tmp_path / "with.nmc").read_bytes()


def test_functions_of_the_c_library_are_found_in_any_version_of_it(tmp_path: Path) -> None:
    path = library_calling("cosf", tmp_path / "cos.so")
    module = tvm_ffi.load_module(path)
    x = np.linspace(-3, 3, *SHAPE, dtype=np.float32)
    module["main"](tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(y := np.empty_like(x)))
    np.testing.assert_allclose(y, np.cos(x), rtol=1e-6)
    # A library that asks for versions has their names in it.
    assert b"GLIBC_" not in path.read_bytes()


def test_a_library_leaves_the_stacks_of_its_process_as_they_are(tmp_path: Path) -> None:
    # Where one does not say so, the loader makes them executable, or from glibc 2.41 on refuses.
    path = library_calling("cosf", tmp_path / "cos.so")
    code = (
        "import ctypes, sys; from nmcompile.runtime.native import native_runtime; "
        "native_runtime(); ctypes.CDLL(sys.argv[1]); "
        "print(*(line for line in open('/proc/self/maps') if '[stack]' in line))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert " rw-p " in done.stdout


def test_a_function_that_nobody_has_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="calls nobody_has_this, which neither TVM's runtime nor"):
        library_calling("nobody_has_this", tmp_path / "m.so")
    assert not (tmp_path / "m.so").exists()


def test_what_the_linker_says_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "m.o").write_bytes(b"no object at all")
    with pytest.raises(TargetError, match=r"could not link the compiled model; it says: .*m\.o"):
        link(str(tmp_path / "m.so"), str(tmp_path / "m.o"))


def test_a_library_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = library_calling("cosf", tmp_path / "cos.so")
    with pytest.raises(OSError, match="No such file or directory"):
        link(str(tmp_path / "nowhere" / "m.so"), str(path))
    with pytest.raises(OSError, match="No space left"):
        link("/dev/full", str(path))


def test_without_a_linker_compiling_says_at_once_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(TargetError, match=r"ziglang, .*pip install 'nmcompile\[compile\]'"):
        nmcompile.compile("there is none.onnx", output=tmp_path / "m.nmc")
