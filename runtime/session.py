"""Load an artifact and run it."""

import os
import string
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from nmcompile.errors import ArtifactError, DeviceError, InputError, NmcompileError
from nmcompile.runtime import cpu, gpu
from nmcompile.runtime.arguments import Arguments
from nmcompile.runtime.chain import Chain
from nmcompile.runtime.compiled import Compiled
from nmcompile.runtime.crew import crew_of, run_here
from nmcompile.runtime.cuda import Cuda, open_cuda
from nmcompile.runtime.format import Artifact, read_artifact
from nmcompile.runtime.library import failure
from nmcompile.runtime.loading import load_forms
from nmcompile.runtime.manifest import Manifest
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
    Times,
    medians,
    name_layers,
    record_runs,
)
from nmcompile.runtime.specs import Call, TensorSpec
from nmcompile.runtime.variants import Part, spell_forms

KINDS = ("avx512", "avx512_vnni", "avx512_bf16", "avx512_amx", *gpu.KINDS)
"""Target kinds that this runtime can run."""


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
            or `write_artifact`). The whole file is then copied into memory and not mapped.

    Raises:
        ArtifactError: the file is unreadable, damaged, too new, not the pinned one, or its library
            is not what its manifest says.
        DeviceError: this machine cannot run it; its library has then not been touched.
        InputError: `threads` is no positive integer, or `digest` no sha256.
    """
    threads = _checked_threads(threads)
    if digest is not None and (len(digest) != 64 or not set(digest) <= set(string.hexdigits)):
        raise InputError(f"digest: expected 64 hexadecimal digits, found {digest!r}")
    # What is pinned is copied before it is looked at: who can change the file changes nothing then.
    artifact = read_artifact(path, copy=digest is not None)
    if digest is not None:
        _check_digest(artifact, digest)
    return Session(artifact, threads)


class Session:
    """A loaded model. Any number of Python threads may run it at the same time.

    What is pickled is the path, the digest and the number of threads: unpickling loads that file.
    In a forked process a session works as before, unless it runs on a GPU. Where onnxruntime runs
    parts of the model, such a process has to end by `os._exit`, as those of multiprocessing do:
    onnxruntime waits at any other end for threads that a fork does not copy.

    Attributes:
        manifest: what the artifact says about itself.
        digest: sha256 that stands for the whole file, see `Artifact`.
        inputs: name, shape and dtype of each input.
        outputs: name, shape and dtype of each output.
        shapes: those of the inputs by name, as `compile(shapes=...)` takes them: one mapping for
            each of the shapes that the artifact has. `inputs` and `outputs` tell of the first.
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
        if manifest.target.kind in gpu.KINDS and (manifest.needs_onnxruntime or manifest.variants):
            raise ArtifactError(
                f"{artifact.path}: expected a model for a GPU to be one library, found "
                f"{len(manifest.plan)} steps for {len(manifest.forms)} shapes; compile it again"
            )
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
        self._forms = manifest.forms
        self.shapes: tuple[dict[str, tuple[int, ...]], ...] = tuple(
            form.shapes for form in self._forms
        )
        self.threads: int = threads
        self._arguments = Arguments(artifact.path, manifest)
        self._native = native_runtime()
        self._placement: Placement = (
            CpuPlacement(self._native)
            if self._cuda is None
            else GpuPlacement(self._native, self._cuda)
        )
        # One run at a time on a GPU, so that what a run lets go of is not freed in between.
        self._turn = None if self._cuda is None else threading.Lock()
        self._process = os.getpid()
        self._crew = crew_of(threads) if threads > 1 and self._cuda is None else None
        self._leave = None if self._crew is None else self._crew.enlist(self)
        # What a session lets go of when it is closed; a run that has begun holds on to it.
        self._loaded: Sequence[Compiled | Chain] | None = None
        try:
            self._loaded = load_forms(
                self._native, self._placement, artifact, self._call, threads, self._cuda is not None
            )
        finally:
            if self._loaded is None and self._leave is not None:
                self._leave()

    def __repr__(self) -> str:
        """The file, what goes in and comes out, and where it runs."""
        forms = spell_forms(self._forms)
        where = f"{self.manifest.target.kind}, {self.threads} thread{'s' * (self.threads > 1)}"
        closed = ", closed" if self._loaded is None else ""
        return f"<Session of {self.path}: {forms}; {where}{closed}>"

    def run(self, inputs: Any) -> dict[str, Any]:
        """Run the model once.

        Args:
            inputs: a mapping from input names to arrays, or the array itself if the model has one
                input. Arrays are numpy arrays or anything with `__dlpack__` (torch tensors too) in
                CPU memory, of exactly the dtype in `self.inputs` and one of `self.shapes`;
                C-contiguous ones that begin on a 64-byte boundary are not copied.
                With several shapes whose images are computed by themselves, a batch may also be a
                sum of theirs: it is run in the fewest parts, the largest first.
                A model on a GPU also takes tensors of any kind in the memory of GPU 0; those have
                to be contiguous and begin on such a boundary, and are never copied.

        Returns:
            New arrays by output name. Where an input was a tensor in the GPU's memory, so are they,
            and of its kind. Then, of torch, the run is on torch's current stream and not waited
            for, as torch's own operators; of others, it is done.

        Raises:
            InputError: a name, shape, dtype or device is wrong, or the session is closed.
            DeviceError: the GPU fails, memory is too small, or this process was forked and cannot
                run models.
            ArtifactError: the library fails, or returns something else than the artifact says.
        """
        if self._turn is None:
            return self._run(inputs)
        with self._turn:
            return self._run(inputs)

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
            ArtifactError: as for `run`, or the library cannot report its calls.
            DeviceError: as for `run`.
        """
        _check_count("repeats", repeats, 1)
        with self._turn or nullcontext():
            runs, calls = self._profile(inputs, repeats)
        if not runs[0]:
            raise ArtifactError(
                f"{self.path} cannot be profiled: its library does not report its calls; compile "
                "it with the VM in bytecode mode"
            )
        return name_layers(medians(runs), calls)

    def close(self) -> None:
        """Let go of the weights, the library and the threads; running afterwards is an error.

        Runs that have begun in other threads end as if nothing had happened; on a GPU they are
        waited for.
        """
        with self._turn or nullcontext():
            if self._loaded is None:
                return
            with self._placement.freeing():
                self._loaded = None
        if self._leave is not None:
            self._leave()

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what `load` needs."""
        self._open()
        return reopen, (str(self.path.absolute()), self.threads, self.digest)

    def _open(self) -> Sequence[Compiled | Chain]:
        loaded = self._loaded
        if loaded is None:
            raise InputError(f"the session of {self.path} is closed; load the artifact again")
        if self._cuda is not None and self._process != os.getpid():
            raise DeviceError(
                f"the session of {self.path} is in the memory of a GPU, which process "
                f"{os.getpid()} cannot use, as it was forked from {self._process}, where it was "
                "loaded; load the artifact in a process that was started by the method 'spawn'"
            )
        return loaded

    def _run(self, inputs: Any) -> dict[str, Any]:
        loaded, values = self._open(), self._arguments.in_order(inputs)
        parts = self._arguments.parts(values)
        results = [self._run_part(loaded[part.variant], part, values) for part in parts]
        if len(results) == 1:
            return results[0]
        return {name: np.concatenate([part[name] for part in results]) for name in results[0]}

    def _run_part(
        self, loaded: Compiled | Chain, part: Part, values: Sequence[Any]
    ) -> dict[str, Any]:
        with self._transfer(loaded, part, values) as transfer:
            if isinstance(loaded, Chain):
                return loaded.run(self._call, transfer.arguments)
            tensors = loaded.run(self._call, transfer.arguments)
            return {
                spec.name: transfer.give_back(tensor)
                for spec, tensor in zip(self.outputs, tensors, strict=True)
            }

    def _profile(self, inputs: Any, repeats: int) -> tuple[list[Times], Sequence[Call]]:
        """The times of each run, and the calls that were timed."""
        everything, values = self._open(), self._arguments.in_order(inputs)
        part = self._arguments.whole(values)
        loaded, calls = everything[part.variant], self._forms[part.variant].calls
        with self._transfer(loaded, part, values) as transfer:
            if isinstance(loaded, Chain):
                return loaded.profile(self._call, transfer.arguments, repeats), calls
            compiled, arguments = loaded, [*transfer.arguments, *loaded.params]
            clock: Clock = HostClock()
            if self._cuda is not None:
                here, entry = self._native.stream, compiled.take()
                clock = GpuClock(self._cuda, transfer.stream, here, lambda: entry(*arguments))

            def record() -> list[Times]:
                # VMs of its own: an instrumented one would slow down every later run.
                machine, name = compiled.library.machine, compiled.entry
                return list(record_runs(machine, name, arguments, repeats, clock))

            return cast(list[Times], self._call(record, [])), calls

    def _call(self, function: Any, arguments: Sequence[Any]) -> Any:
        """Call something that runs the library, on the session's threads."""
        if self._cuda is not None:
            return run_here(self._native, function, *arguments)
        try:
            if self._crew is None:
                return run_here(self._native, function, *arguments)
            return self._crew.run(function, *arguments)
        except NmcompileError:
            raise
        except Exception as error:
            raise failure(self.path, error) from error

    def _transfer(
        self, loaded: Compiled | Chain, part: Part, values: Sequence[Any]
    ) -> AbstractContextManager[Transfer]:
        weights = loaded.addresses if isinstance(loaded, Compiled) else frozenset[int]()
        specs = self._forms[part.variant].inputs
        return self._placement.transfer(specs, self._arguments.of(part, values), weights)


def reopen(path: str, threads: int, digest: str) -> Session:
    """Load the artifact of a session that was pickled.

    Raises:
        ArtifactError: as `load`; or another file is in its place now.
    """
    artifact = read_artifact(path)
    _check_digest(artifact, digest)
    return Session(artifact, _checked_threads(threads))


def _check_digest(artifact: Artifact, digest: str) -> None:
    if digest.lower() != artifact.digest:
        raise ArtifactError(
            f"{artifact.path} is not the pinned artifact: expected digest {digest.lower()}, "
            f"found {artifact.digest}"
        )


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
