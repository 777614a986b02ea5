"""Load an artifact and run it."""

import importlib.metadata
import os
import string
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nmcompile.errors import ArtifactError, DeviceError, InputError
from nmcompile.runtime import cpu, gpu
from nmcompile.runtime.cuda import Cuda, open_cuda
from nmcompile.runtime.format import Artifact, read_artifact
from nmcompile.runtime.manifest import Manifest, TensorSpec
from nmcompile.runtime.native import (
    available_threads,
    default_threads,
    load_gpu_runtime,
    native_runtime,
)
from nmcompile.runtime.placement import CpuPlacement, GpuPlacement, Placement, Transfer
from nmcompile.runtime.profile import (
    Clock,
    GpuClock,
    HostClock,
    LayerTime,
    medians,
    name_layers,
    record_runs,
)

KINDS = ("avx512", *gpu.KINDS)  # target kinds this runtime can run


def load(
    path: str | os.PathLike[str], threads: int | None = None, digest: str | None = None
) -> "Session":
    """Check the artifact at `path` and this machine, then make the model ready to run.

    Loading runs native code from the file: load only files you trust, or pin their digest.

    Args:
        path: an artifact written by `nmcompile.compile`.
        threads: cores to run on, 1 or more; None for all that this process may use,
            or for TVM_NUM_THREADS if the environment sets that lower. More than there are: a
            RuntimeWarning, and all are used.
        digest: refuse the file unless this is its digest (64 hex digits, from `Artifact.digest`
            or `write_artifact`).

    Raises:
        ArtifactError: the file is unreadable, damaged, too new, or not the pinned one.
        DeviceError: this machine cannot run it; its library has then not been touched.
        InputError: `threads` is no positive integer, or `digest` no sha256.
    """
    threads = _checked_threads(threads)
    if digest is not None and (len(digest) != 64 or not set(digest) <= set(string.hexdigits)):
        raise InputError(f"digest: expected 64 hexadecimal digits, found {digest!r}")
    artifact = read_artifact(path)
    if digest is not None and digest.lower() != artifact.digest:
        raise ArtifactError(
            f"{artifact.path} is not the pinned artifact: expected digest {digest.lower()}, "
            f"found {artifact.digest}"
        )
    return Session(artifact, threads)


class Session:
    """A loaded model. Any number of Python threads may run it at the same time.

    Attributes:
        manifest: what the artifact says about itself.
        digest: sha256 that stands for the whole file, see `Artifact`.
        inputs: name, shape and dtype of each input.
        outputs: name, shape and dtype of each output.
        threads: how many cores each run uses.
    """

    def __init__(self, artifact: Artifact, threads: int) -> None:
        """Check the CPU or GPU, then load the library of `artifact`; see `load` for the errors."""
        manifest = artifact.manifest
        if manifest.target.kind not in KINDS:
            raise DeviceError(
                f"{artifact.path} is compiled for the target {manifest.target.kind!r}, this "
                f"nmcompile runs {', '.join(KINDS)}: install a newer one, or compile the model "
                "for another target"
            )
        cpu.require(manifest.target.cpu_features, str(artifact.path))
        self._cuda: Cuda | None = None
        if manifest.target.kind in gpu.KINDS:
            weights = sum(spec.nbytes for spec in manifest.params)
            gpu.require(
                manifest.target.kind, weights + manifest.workspace_bytes, str(artifact.path)
            )
            load_gpu_runtime()
            self._cuda = open_cuda()
        self.path: Path = artifact.path
        self.manifest: Manifest = manifest
        self.digest: str = artifact.digest
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.threads: int = threads
        self._native = native_runtime()
        self._placement: Placement = (
            CpuPlacement(self._native)
            if self._cuda is None
            else GpuPlacement(self._native, self._cuda)
        )
        self._module: Any = self._load_library(artifact)
        # The tensors keep the mapping of the file alive, the artifact itself is not needed.
        self._params = self._prepared([self._placement.place(a) for a in artifact.params])
        # One VM must not be entered by two threads at once, so each thread gets its own.
        self._local = threading.local()
        self._entry()

    def run(self, inputs: Any) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: a mapping from input names to arrays, or the array itself if the model has one
                input. Arrays are numpy arrays or anything with `__dlpack__` (torch tensors too) in
                CPU memory, of exactly the shape and dtype in `self.inputs`; C-contiguous ones that
                begin on a 64-byte boundary are not copied.
                A model on a GPU also takes tensors of any kind in the memory of GPU 0; those have
                to be contiguous and begin on such a boundary, and are never copied.

        Returns:
            New arrays by output name. Where an input was a tensor in the GPU's memory, so are they,
            and of its kind. Then, of torch, the run is on torch's current stream and not waited
            for, as torch's own operators; of others, it is done.

        Raises:
            InputError: a name, shape, dtype or device is wrong, or the session is closed.
            DeviceError: the GPU fails, or its memory is too small.
        """
        entry = self._entry()
        with self._transfer(inputs) as transfer:
            self._native.use_threads(self.threads)
            return self._results(entry(*transfer.arguments, *self._params), transfer)

    def bench(self, inputs: Any, repeats: int = 20, warmup: int = 3) -> list[float]:
        """Time `run` and return the seconds of each of `repeats` calls, after `warmup` others.

        Raises:
            InputError: as for `run`, or `repeats` or `warmup` is too small.
        """
        _check_count("repeats", repeats, 1)
        _check_count("warmup", warmup, 0)
        for _ in range(warmup):
            self.run(inputs)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.run(inputs)
            seconds.append(time.perf_counter() - start)
        return seconds

    def profile(self, inputs: Any, repeats: int = 10) -> list[LayerTime]:
        """Time every kernel call and return them in execution order.

        The times include a few microseconds of measuring per call, so their sum is above the time
        of a `run`. On a GPU they are times between CUDA events, of kernels that are launched one
        after the other and not as one CUDA graph.

        Raises:
            InputError: as for `run`, or `repeats` is below 1.
            ArtifactError: the library cannot report its calls.
            DeviceError: as for `run`.
        """
        _check_count("repeats", repeats, 1)
        entry = self._entry()
        with self._transfer(inputs) as transfer:
            self._native.use_threads(self.threads)
            runs = self._record(entry, transfer, repeats)
        if not runs[0]:
            raise ArtifactError(
                f"{self.path} cannot be profiled: its library does not report its calls; compile "
                "it with the VM in bytecode mode"
            )
        return name_layers(medians(runs), self.manifest.calls)

    def _record(
        self, entry: Any, transfer: Transfer, repeats: int
    ) -> list[list[tuple[str, float]]]:
        arguments = [*transfer.arguments, *self._params]
        clock: Clock = HostClock()
        if self._cuda is not None:
            here = self._native.stream
            clock = GpuClock(self._cuda, transfer.stream, here, lambda: entry(*arguments))
        # VMs of its own: an instrumented one would slow down every later run.
        return list(record_runs(self._machine, self.manifest.entry, arguments, repeats, clock))

    def close(self) -> None:
        """Let go of the weights and of every thread's VM; running afterwards is an error."""
        with self._placement.freeing():
            self._module = None
            self._params = []
            self._local = threading.local()

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def _check_open(self) -> None:
        if self._module is None:
            raise InputError(f"the session of {self.path} is closed; load the artifact again")

    def _entry(self) -> Any:
        self._check_open()
        if not hasattr(self._local, "entry"):
            self._local.entry = self._function(
                self.manifest.entry, len(self.inputs), len(self._params)
            )
        return self._local.entry

    def _load_library(self, artifact: Artifact) -> Any:
        manifest = artifact.manifest
        # dlopen wants a file. A private folder, so that nobody can put another in its place; it
        # can go as soon as the library is mapped.
        try:
            with tempfile.TemporaryDirectory(prefix="nmcompile-") as folder:
                file = Path(folder, "lib.so")
                file.write_bytes(artifact.library)
                module = self._native.load_module(str(file))
        except OSError as error:
            raise DeviceError(
                f"cannot unpack the library of {artifact.path} into {tempfile.gettempdir()}: "
                f"{error.strerror}; point TMPDIR at a writeable folder"
            ) from error
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"cannot load the library of {artifact.path}, compiled with TVM "
                f"{manifest.producer.tvm} (here: {_tvm_version()}): {error}; compile the model "
                "again, or point TMPDIR at a folder that allows executable files"
            ) from error
        return module

    def _machine(self) -> Any:
        return self._native.virtual_machine(self._module, gpu=self._cuda is not None)

    def _function(self, name: str, inputs: int, weights: int) -> Any:
        """A function of the library in a VM of its own.

        Raises:
            ArtifactError: there is none of so many inputs and weights.
        """
        try:
            machine = self._machine()
            found = int(machine["get_function_arity"](name))
        except (AttributeError, RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"the library of {self.path} has no function {name!r} for TVM's VM "
                f"({error}); compile the model again"
            ) from error
        if found != inputs + weights:
            raise ArtifactError(
                f"{self.path}: expected the function {name!r} to take {inputs + weights} "
                f"tensors ({inputs} inputs and {weights} weights), found {found}"
            )
        return machine[name]

    def _prepared(self, params: list[Any]) -> list[Any]:
        """The weights as the entry function takes them."""
        name = self.manifest.prepare
        if not name:
            return params
        self._native.use_threads(self.threads)
        result = self._function(name, 0, len(params))(*params)
        return [result] if isinstance(result, self._native.tensor) else list(result)

    def _transfer(self, inputs: Any) -> AbstractContextManager[Transfer]:
        return self._placement.transfer(self.inputs, self._in_order(inputs), self._params)

    def _in_order(self, inputs: Any) -> list[Any]:
        """The caller's values, one for each of `self.inputs`."""
        if not isinstance(inputs, Mapping):
            if len(self.inputs) != 1:
                raise InputError(
                    f"expected a mapping with the inputs {self._names()}, found "
                    f"{type(inputs).__name__}"
                )
            return [inputs]
        names = {spec.name for spec in self.inputs}
        missing = [name for name in names if name not in inputs]
        extra = [name for name in inputs if name not in names]
        if missing or extra:
            found = ", ".join(map(repr, inputs)) or "none"
            raise InputError(f"expected the inputs {self._names()}, found {found}")
        return [inputs[spec.name] for spec in self.inputs]

    def _names(self) -> str:
        return ", ".join(repr(spec.name) for spec in self.inputs)

    def _results(self, result: Any, transfer: Transfer) -> dict[str, Any]:
        tensors: list[Any] = [result] if isinstance(result, self._native.tensor) else list(result)
        expected = [(spec.shape, spec.dtype) for spec in self.outputs]
        found = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
        if expected != found:
            raise ArtifactError(
                f"{self.path}: expected outputs of shape and dtype {expected}, the library "
                f"returned {found}; compile the model again"
            )
        return {
            spec.name: transfer.give_back(tensor)
            for spec, tensor in zip(self.outputs, tensors, strict=True)
        }


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()
    if type(threads) is not int or threads < 1:
        raise InputError(f"threads: expected an integer of at least 1, found {threads!r}")
    available = available_threads()
    if threads > available:
        warnings.warn(
            f"threads: this process may use {available} cores, not {threads}; using {available}",
            RuntimeWarning,
            stacklevel=3,
        )
    return min(threads, available)


def _check_count(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{name}: expected an integer of at least {least}, found {value!r}")


def _tvm_version() -> str:
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
