"""From a lowered module to the shared library of a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build
from tvm.tirx.build import codegen_build

from nmcompile.kernels.objects import Objects, Report, workers
from nmcompile.linking import link
from nmcompile.passes.lowering.fallback import machine_pipeline
from nmcompile.passes.lowering.room import check_room
from nmcompile.runtime.files import scratch_folder


@dataclass(frozen=True, eq=False)
class Program:
    """What the virtual machine runs, and the functions that it calls by names.

    functions: in TIR, by name; names go by content.
    executable: TVM's.
    """

    functions: Mapping[str, Any]
    executable: Any
    target: Any

    @property
    def content(self) -> bytes:
        """What a library has in it beside the functions: instructions, names and constants.

        So a library that has the same computes the same, whatever weights it is given.
        """
        packed = tvm.get_global_func("runtime.ModulePackImportsToTensor")(self.executable.mod)
        content: bytes = packed.numpy().tobytes()
        return content


class Maker(Protocol):
    """Who has or makes libraries."""

    def make(self, program: Program, progress: Report) -> bytes:
        """The bytes of a program's shared library.

        Args:
            program: what it runs.
            progress: called with (functions done, functions in all).
        """


@dataclass(frozen=True, eq=False)
class Linker:
    """Makes libraries of object files."""

    objects: Objects

    def make(self, program: Program, progress: Report) -> bytes:
        """Compile the functions and link them."""
        with scratch_folder() as folder:
            count = len(program.functions)
            check_room(folder, count, workers(count))
            made = self.objects.write(program.functions, program.target, folder, progress)
            path = folder / "model.so"
            # TVM leaves the folder that it makes itself to the end of the process.
            program.executable.export_library(
                str(path),
                fcompile=link,
                addons=[str(file) for file in made],
                workspace_dir=str(folder),
            )
            return path.read_bytes()


def build_program(module: Any, target: Any) -> Program:
    """Translate a lowered module for Relax's virtual machine.

    As `relax.build`, with two differences. TVM's default pipeline looks for reshapes inside every
    TIR function and stops at functions that are not built of its blocks, as ours are not; reshapes
    are still operators here, so that pass is left out. And functions are left for the linker, so
    that each becomes an object file of its own.
    """
    with target:
        module = machine_pipeline()(module)
    builder = relax.ExecBuilder()
    rest = vm_build._vmcodegen(builder, module)
    functions = {
        var.name_hint: func
        for var, func in rest.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    # Without a function, it says what the library is for, and is who finds the others in it.
    empty = codegen_build(tvm.IRModule({}), target)
    linked = vm_build._ffi_api.VMLink(builder, target, empty, [], {})
    return Program(functions, vm_build.VMExecutable(linked), target)
