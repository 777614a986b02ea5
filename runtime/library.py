"""The library of an artifact, loaded: its functions, and whether the manifest describes it."""

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.errors import ArtifactError, DeviceError, NmcompileError
from nmcompile.runtime.files import scratch_folder
from nmcompile.runtime.format import Artifact
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.specs import TensorSpec, numpy_dtype
from nmcompile.runtime.steps import LIBRARY
from nmcompile.runtime.tensors import from_numpy

PREPARE = "prepare"
# How the VM says that an argument is none of those that a function takes.
_ARGUMENT = re.compile(r"loc=param\[(\d+)\], param=(.*?), annotation=(.*\))\)\s")
_SHORT_OF_MEMORY = re.compile(r"bad_alloc|alloc|\(12 vs\. 0\)", re.IGNORECASE)  # 12 is ENOMEM


class Library:
    """A loaded library, until nobody holds it or one of its functions."""

    def __init__(
        self, native: NativeRuntime, artifact: Artifact, gpu: bool, section: str = LIBRARY
    ) -> None:
        """Load a library of an artifact, for VMs on the CPU or on GPU 0.

        Raises:
            ArtifactError: it is no library, or not for this version of TVM.
            DeviceError: it cannot be unpacked here.
        """
        self._native, self._gpu, self._path = native, gpu, artifact.path
        # dlopen wants a file. A private folder, so that nobody can put another in its place; it
        # can go as soon as the library is mapped.
        content = artifact.parts[section]
        try:
            with scratch_folder() as folder:
                file = folder / "lib.so"
                file.write_bytes(content)
                self._module = native.load_module(str(file))
        except OSError as error:
            raise DeviceError(
                f"cannot unpack the library of {artifact.path} into a temporary folder: "
                f"{error.strerror or error}; point TMPDIR at a writeable folder with "
                f"{len(content)} bytes of room"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"cannot load the library of {artifact.path}, compiled with TVM "
                f"{artifact.manifest.producer.tvm} (here: {_tvm_version()}): {error}; compile the "
                "model again, or point TMPDIR at a folder that allows executable files"
            ) from error

    def machine(self) -> Any:
        """A new VM."""
        return self._native.virtual_machine(self._module, gpu=self._gpu)

    def function(self, name: str, inputs: int, weights: int) -> Any:
        """A function of the library in a VM of its own.

        Raises:
            ArtifactError: there is none of so many inputs and weights.
        """
        try:
            machine = self.machine()
            function, found = machine[name], int(machine["get_function_arity"](name))
        except (AttributeError, RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"the library of {self._path} has no function {name!r} for TVM's VM "
                f"({error}); compile the model again"
            ) from error
        if found != inputs + weights:
            raise ArtifactError(
                f"{self._path}: expected the function {name!r} to take {inputs + weights} "
                f"tensors ({inputs} inputs and {weights} weights), found {found}"
            )
        return function

    def check_prepared(self, named: str) -> None:
        """Hold that weights are prepared where they have to be.

        Args:
            named: the function for it that the manifest names, or "".

        Raises:
            ArtifactError: the library has a function for it that the manifest does not name.
        """
        machine = self.machine()
        try:
            found = int(machine["get_function_arity"](PREPARE)) > 0
        except (AttributeError, RuntimeError, ValueError):
            return
        if found and named != PREPARE:
            raise ArtifactError(
                f"{self._path}: its library has a function {PREPARE!r} for the weights, but the "
                f"manifest names {named or 'none'!r}; compile the model again"
            )

    def check(
        self,
        entry: str,
        expected: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        params: Sequence[Any],
    ) -> None:
        """Hold what the library takes and returns against the manifest, without computing.

        The VM checks arguments before it calls a kernel; kernels are skipped. (Of a library whose
        VM does not report its calls, all of it runs.)

        Raises:
            ArtifactError: they differ.
        """
        try:
            inputs = [
                from_numpy(self._native, np.zeros(spec.shape, numpy_dtype(spec.dtype)))
                for spec in expected
            ]
        except MemoryError as error:
            raise failure(self._path, error) from error
        machine = self.machine()
        # Another VM tells which functions are its own: one that holds itself is never freed.
        machine["set_instrument"](_KernelSkipper(self.machine()["get_function_arity"]))
        try:
            result = machine[entry](*inputs, *params)
        except Exception as error:
            found = _ARGUMENT.search(str(error))
            if found is None:
                return  # something that needs a kernel's result; a run says what
            raise ArtifactError(
                f"{self._path}: its library takes {found[3]} as argument {int(found[1]) + 1}, "
                f"{found[2]}, expected {_spell([*expected, *params], int(found[1]))} as in "
                "its manifest; compile the model again"
            ) from error
        check_outputs(self._path, outputs, self.tensors(result))

    def tensors(self, result: Any) -> list[Any]:
        """What a function returned, one or several, as a list.

        Raises:
            ArtifactError: they are no tensors.
        """
        kind = self._native.tensor
        tensors = [result] if isinstance(result, kind) else result
        try:
            if all(isinstance(tensor, kind) for tensor in tensors):
                return list(tensors)
        except TypeError:
            pass
        raise ArtifactError(
            f"{self._path}: expected its library to return tensors, found "
            f"{type(result).__name__}; compile the model again"
        )


def check_outputs(path: Path, specs: Sequence[TensorSpec], tensors: Sequence[Any]) -> None:
    """Compare what a library returns with what its manifest says.

    Raises:
        ArtifactError: they differ.
    """
    expected = [(spec.shape, spec.dtype) for spec in specs]
    found = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    if expected != found:
        raise ArtifactError(
            f"{path}: expected outputs of shape and dtype {expected}, the library returned "
            f"{found}; compile the model again"
        )


def failure(path: Path, error: Exception) -> NmcompileError:
    """What to raise for an error of a library that has got what its manifest says."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, MemoryError) or _SHORT_OF_MEMORY.search(text):
        return DeviceError(
            f"{path} does not find enough memory to run ({text}); free some, or compile the model "
            "for a smaller batch"
        )
    return ArtifactError(
        f"{path}: its library fails ({text}); it does not fit its manifest, or is damaged: compile "
        "the model again"
    )


class _KernelSkipper:
    """Tells an instrumented VM to go on (0) with what is no kernel, and to skip (1) kernels."""

    def __init__(self, arity_of: Any) -> None:
        self._arity_of = arity_of
        self._answers: dict[str, int] = {}

    def __call__(self, function: Any, symbol: str, before: bool, *rest: Any) -> int:
        """See the class."""
        if symbol not in self._answers:
            self._answers[symbol] = 0 if self._of_vm(symbol) else 1
        return self._answers[symbol]

    def _of_vm(self, symbol: str) -> bool:
        # A kernel is a C function, whose name has no dots; what has is a function of TVM's runtime
        # and returns what the VM reads. As the VM lists its own, kernels have no parameters.
        return "." in symbol or int(self._arity_of(symbol)) > 0


def _spell(arguments: Sequence[Any], index: int) -> str:
    shape, dtype = tuple(arguments[index].shape), arguments[index].dtype
    return f"shape {shape} and dtype {dtype}"


def _tvm_version() -> str:
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
