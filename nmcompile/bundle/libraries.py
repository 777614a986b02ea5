"""What a bundle takes from this Python: TVM's libraries and bindings, and what these need."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nmcompile.bundle.pythons import bindings
from nmcompile.errors import DeviceError
from nmcompile.runtime.native import CUDART, cudart_paths, library_folders

# Folders of tvm_ffi's that its other modules do not import: its tests and a code generator.
_UNUSED = ("stub", "testing")
# Its compiled parts are linked with both.
_FFI_LIBRARIES = ("libtvm_ffi.so", "libtvm_ffi_testing.so")
_LICENCE = re.compile(r"licen[cs]es?\b|notice\b|eula\b", re.IGNORECASE)


def binding_files(parts: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The files of tvm_ffi and what it imports: paths in the bundle, and where they are here.

    Args:
        parts: the compiled ones, see `compiled_parts`.
    """
    folder = bindings()
    for source in sorted(folder.rglob("*.py")):
        path = source.relative_to(folder)
        if path.parts[0] not in _UNUSED:
            yield f"tvm_ffi/{path}", source
    for part in parts:
        yield f"tvm_ffi/{part.name}", part
    for name in _FFI_LIBRARIES:
        yield f"tvm_ffi/lib/{name}", folder / "lib" / name
    # tvm_ffi looks for its library where the first of these on sys.path says: without one here it
    # would load the library of another release that is installed.
    for file in _distribution_files("apache-tvm-ffi"):
        if file.parent.suffix == ".dist-info" and file.name in ("METADATA", "RECORD"):
            yield str(file), Path(str(file.locate()))
    yield "typing_extensions.py", _typing_extensions()


def library_files(gpu: bool) -> Iterator[tuple[str, Path]]:
    """TVM's runtime, as `binding_files`: beside tvm_ffi's library, where they find each other.

    Raises:
        DeviceError: one of them is not on this machine.
    """
    names = ["libtvm_runtime.so", *(["libtvm_runtime_cuda.so"] if gpu else [])]
    folders = _folders()
    for name in names:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            raise DeviceError(
                f"TVM's {name} is in none of {', '.join(map(str, folders))}; pip install "
                "--force-reinstall 'apache-tvm>=0.27,<0.28'"
            )
        yield f"tvm_ffi/lib/{name}", found
    if gpu:
        yield f"tvm_ffi/lib/{CUDART}", _cudart()


def licence_files(gpu: bool) -> Iterator[tuple[str, Path]]:
    """The licences of nmcompile and of all that the functions above return."""
    # Where TVM is not installed, its runtime is a part of nmcompile's wheel, as are its licences.
    tvm = [] if importlib.util.find_spec("tvm") is None else ["apache-tvm"]
    for name in ("nmcompile", *tvm, "apache-tvm-ffi", "typing_extensions"):
        seen = set()
        for file in _distribution_files(name):
            path = Path(str(file.locate()))
            # Names of files and of folders such as licenses/; the same text may come twice.
            if path.suffix in (".py", ".pyc") or not any(_LICENCE.match(p) for p in file.parts):
                continue
            if path.is_file() and (content := path.read_bytes()) not in seen:
                seen.add(content)
                yield f"licenses/{name}/{file}", path
    if gpu:
        for path in _cudart_licences():
            yield f"licenses/nvidia-cuda-runtime/{path.name}", path


def _typing_extensions() -> Path:
    spec = importlib.util.find_spec("typing_extensions")
    if spec is None or spec.origin is None:
        raise DeviceError("tvm_ffi needs typing_extensions; pip install typing_extensions")
    return Path(spec.origin)


def _folders() -> list[Path]:
    try:
        return library_folders()
    except ModuleNotFoundError as error:
        raise DeviceError("TVM is not installed; pip install 'apache-tvm>=0.27,<0.28'") from error


def _distribution_files(name: str) -> list[importlib.metadata.PackagePath]:
    try:
        return importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise DeviceError(
            f"the licence of {name} must go along, but it is not installed as a package; pip "
            f"install {name}"
        ) from error


def _cudart() -> Path:
    """The file of CUDA's runtime library: of a wheel, of nvcc's toolkit, or the loader's."""
    nvcc = shutil.which("nvcc")
    toolkit = [] if nvcc is None else [Path(nvcc).resolve().parents[1] / "lib64" / CUDART]
    for path in (*map(Path, cudart_paths()), *toolkit):
        if path.is_absolute() and path.is_file():
            return path.resolve()
    try:
        ctypes.CDLL(CUDART)
    except OSError as error:
        raise DeviceError(
            f"a bundle for GPUs needs {CUDART}, which TVM's CUDA runtime is linked with; pip "
            "install nvidia-cuda-runtime, or put the lib64 folder of the CUDA toolkit on "
            "LD_LIBRARY_PATH"
        ) from error
    # The loader does not say where it found a name; the mappings of this process do.
    for line in Path("/proc/self/maps").read_text().splitlines():
        mapped = line.partition("/")[2]
        if Path(mapped).name.startswith(CUDART):
            return Path(f"/{mapped}")
    raise DeviceError(f"cannot tell where {CUDART} is; pip install nvidia-cuda-runtime")


def _cudart_licences() -> list[Path]:
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        toolkit = _cudart().parents[1]
        return [path for path in (toolkit / "EULA.txt", toolkit / "LICENSE") if path.is_file()]
    return [
        Path(str(file.locate()))
        for file in files
        if any(_LICENCE.match(part) for part in file.parts)
    ]
