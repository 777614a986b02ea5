"""Compiles CUDA source for the emulator, once per text, and runs it on numpy arrays."""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from nmcompile.kernels.cuda.build import CudaSource, Launch
from tests.support.cuda_emulator.translate import translate

Array = npt.NDArray[Any]
HERE = Path(__file__).parent
# Code of the machine at hand: conversions of float16 are library calls otherwise.
COMPILE = ("g++", "-march=native", "-w", "-std=c++17", "-fPIC", "-fvisibility=hidden")
_NUMBERS = itertools.count()
_FOLDER = tempfile.TemporaryDirectory(prefix="nmcompile-emulator-")


class EmulationError(Exception):
    """The kernel did what a GPU would not define."""


def run_emulated(source: CudaSource, buffers: Mapping[str, Array]) -> None:
    """Launch all kernels of a source; `buffers` are contiguous and changed in place.

    Raises:
        EmulationError: a race, an access out of bounds, a barrier that not all threads reach.
    """
    library = _library(source.text, source.launches)
    names = sorted({name for launch in source.launches for name in launch.arguments})
    addresses = [buffers[name].ctypes.data for name in names]
    library.set_buffers(
        len(names),
        (ctypes.c_char_p * len(names))(*(name.encode() for name in names)),
        (ctypes.c_void_p * len(names))(*addresses),
        (ctypes.c_long * len(names))(*(buffers[name].nbytes for name in names)),
    )
    for number, launch in enumerate(source.launches):
        arguments = [buffers[name].ctypes.data for name in launch.arguments]
        function = library[f"run_{number}"]
        function.restype = ctypes.c_char_p
        error = function((ctypes.c_void_p * len(arguments))(*arguments))
        if error is not None:
            raise EmulationError(f"{launch.kernel}: {error.decode()}")


def emulated_library(source: CudaSource) -> Path:
    """The shared library that launches the source's kernels; it is there until this process ends.

    `run_<number>` takes the buffers of one launch and returns an error or null; `set_buffers`
    says before which memory there is.
    """
    return Path(_library(source.text, source.launches)._name)


@functools.cache
def _library(text: str, launches: tuple[Launch, ...]) -> ctypes.CDLL:
    machine = _machine()
    path = Path(_FOLDER.name, f"kernel_{next(_NUMBERS)}.cpp")
    path.write_text(translate(text, launches))
    library = path.with_suffix(".so")
    _compile("-O1", "-shared", str(path), str(machine), "-o", str(library))
    return ctypes.CDLL(str(library))


@functools.cache
def _machine() -> Path:
    """What all kernels share: the header, which is read once, and what is behind it."""
    header, code = Path(_FOLDER.name, "emulator.h"), HERE / "instructions.cpp"
    _compile("-O1", "-x", "c++-header", str(HERE / header.name), "-o", f"{header}.gch")
    made = Path(_FOLDER.name, "instructions.o")
    _compile("-O2", "-c", str(code), "-o", str(made))
    return made


def _compile(*arguments: str) -> None:
    done = subprocess.run([*COMPILE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
