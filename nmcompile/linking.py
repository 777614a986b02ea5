"""Object files of LLVM's to a shared library, by LLVM's linker, which the wheel `ziglang` brings.

What is compiled here calls TVM's runtime and the C library and nothing else, so a linker alone will
do: no start files, no libraries to search, no compiler. Both are loaded before a library is, where
it finds their symbols. None of these carries a version, so the loader takes each in its oldest one:
a library runs with older C libraries than the machine has that linked it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nmcompile.errors import TargetError
from nmcompile.explain import machine_reason

_FLAGS = (
    "-shared",
    "--strip-debug",  # LLVM's notes for debuggers are more than half of an object
    "--eh-frame-hdr",  # profilers and debuggers walk the stack by it
    "--hash-style=gnu",
    # What is missing must fail when a library is loaded, not in the middle of a run.
    *("-z", "now"),
    # Undefined symbols are told, so that they can be looked up here.
    *("-z", "defs", "--warn-unresolved-symbols"),
)
_UNDEFINED = re.compile(r"undefined symbol: (\S+)")
_TVM = "TVM"  # begins the names of all that TVM's runtime has for libraries
_C_LIBRARY = "libm.so.6"  # finds what it needs itself as well, which is the rest of it


def find_linker() -> Path:
    """The program of the wheel `ziglang`, which is LLVM's linker when its first argument says so.

    Raises:
        TargetError: it is not installed.
    """
    spec = importlib.util.find_spec("ziglang")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        if (program := Path(folder) / "zig").is_file():
            return program
    raise TargetError(
        "linking a compiled model needs the linker of the package ziglang, which is not installed "
        "here (the machine that runs the model needs none): pip install 'nmcompile[compile]'"
    )


def link(output: str, objects: str | Sequence[str]) -> None:
    """Link object files to a shared library; TVM's `export_library` takes this as `fcompile`.

    Raises:
        TargetError: there is no linker, it fails, or the objects call what will be nowhere.
        OSError: the library cannot be written.
    """
    objects = [objects] if isinstance(objects, str) else objects
    # To a pipe: it writes files through memory, and where there is no room a signal ends it.
    command = [str(find_linker()), "ld.lld", *_FLAGS, "-o", "-", *objects]
    done = subprocess.run(command, capture_output=True, check=False)
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        reason = said.strip() or f"nothing, and ended with {done.returncode}"
        raise machine_reason(RuntimeError(reason)) or TargetError(
            f"{' '.join(command[:2])} could not link the compiled model; it says: {reason}"
        )
    known = ctypes.CDLL(_C_LIBRARY)
    names = dict.fromkeys(_UNDEFINED.findall(said))
    nowhere = [name for name in names if not name.startswith(_TVM) and not hasattr(known, name)]
    if nowhere:
        raise TargetError(
            f"the compiled model calls {', '.join(nowhere)}, which neither TVM's runtime nor the C "
            "library has: nothing could run it; please report this with the model"
        )
    Path(output).write_bytes(done.stdout)
