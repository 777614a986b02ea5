"""From TIR functions to object files: each function once, on all cores, and from the cache again.

TVM and LLVM hold no lock of Python while they work, so that threads share out the functions. What
comes of one does not depend on the others: the bytes are the same in any order and on any number of
threads.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from nmcompile.cache import Cache, source_digest
from nmcompile.kernels.pipeline import NAME as TIR_PIPELINE
from nmcompile.version import VERSION

MADE_BY = "nmcompile.made_by"
"""Attribute of a function: a text that says all of what is in it.

Of ours, what it was emitted from: to print one takes longer than to emit it.
"""
ROOMS = ("kernels", "sparsity")
"""Of this package: what functions are emitted by, and lowered."""

Report = Callable[[int, int], None]


class Objects:
    """The object files of one compilation's functions, also of such as several libraries have."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._made: dict[str, bytes] = {}

    def write(
        self,
        functions: Mapping[str, Any],
        target: Any,
        folder: Path,
        progress: Report = lambda done, total: None,
    ) -> list[Path]:
        """Write the object file of each function.

        Args:
            functions: TIR functions with `MADE_BY`, by the name that they are to have.
            target: TVM's, of a CPU.
            folder: where to.
            progress: called with (functions done, functions in all).

        Returns:
            The files, in the order of the names.
        """
        keys = {name: _key(name, functions[name], target) for name in sorted(functions)}
        missing = [name for name, key in keys.items() if not self._has(key)]
        done = len(keys) - len(missing)
        with ThreadPoolExecutor(workers(len(missing))) as pool:
            build = functools.partial(_build, target=target, folder=folder)
            # The longest first, so that no core waits for one of them at the end.
            missing.sort(key=lambda name: -_size(functions[name]))
            running = [(name, pool.submit(build, name, functions[name])) for name in missing]
            try:
                for name, future in running:
                    progress(done, len(keys))
                    self._made[keys[name]] = future.result()
                    self._cache.write(keys[name], future.result())
                    done += 1
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        paths = []
        for name, key in keys.items():
            paths.append(folder / f"{name}.o")
            paths[-1].write_bytes(self._made[key])
        return paths

    def _has(self, key: str) -> bool:
        if key not in self._made and (kept := self._cache.read(key)) is not None:
            self._made[key] = kept
        return key in self._made


def workers(functions: int) -> int:
    """How many functions are compiled at once."""
    return max(1, min(functions, len(os.sched_getaffinity(0))))


def _build(name: str, function: Any, target: Any, folder: Path) -> bytes:
    """The object file of one function."""
    function = function.without_attr(MADE_BY).with_attr("global_symbol", name)
    module = tirx.build(tvm.IRModule({name: function}), target, TIR_PIPELINE)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".o") as file:
        module.write_to_file(file.name, "o")
        return Path(file.name).read_bytes()


def _size(function: Any) -> int:
    """What compiling it takes goes with the number of its statements."""
    count = 0

    def visit(node: Any) -> None:
        nonlocal count
        count += 1

    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, visit))
    return count


def _key(name: str, function: Any, target: Any) -> str:
    """Equal for equal object files, and different for all others."""
    return f"object {identity(function.attrs[MADE_BY])} {name} {target}"


def identity(made_by: str) -> str:
    """The sha256 of what a function was made by, in hex, and of the tools that do so."""
    return hashlib.sha256(f"{_tools()}\n{made_by}".encode()).hexdigest()


@functools.cache
def _tools() -> str:
    """The version of TVM, with which its LLVM comes, and what emits and lowers functions here."""
    digest = source_digest(Path(__file__).parents[1] / room for room in ROOMS)
    return f"tvm {tvm.__version__}, nmcompile {VERSION} {digest}"
