"""Parts of a model that onnxruntime runs; only a model that has some imports it."""

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmcompile.errors import ArtifactError, DeviceError, NmcompileError
from nmcompile.runtime.crew import inside
from nmcompile.runtime.steps import Step

PROVIDERS = ["CPUExecutionProvider"]

_alive: "weakref.WeakSet[Rest]" = weakref.WeakSet()


class Rest:
    """One ONNX file in a session of onnxruntime, of which any number of runs may be under way.

    Its threads end with a fork, and what waits for them would wait for ever: a child makes a
    session of its own.
    """

    def __init__(
        self, path: Path, step: Step, content: memoryview, threads: int, made_with: str
    ) -> None:
        """Make the session.

        Args:
            path: the artifact, for messages.
            step: which inputs and outputs to expect.
            content: the ONNX file.
            threads: how many cores a run uses.
            made_with: the version of onnxruntime at compile time, or "".

        Raises:
            DeviceError: onnxruntime is missing.
            ArtifactError: it does not take the file, or that is not what the step says.
        """
        self.step = step
        self._path, self._content = path, content
        self._threads, self._made_with = threads, made_with
        self._forget()
        session = self._open()
        found = [[value.name for value in values] for values in _ends(session)]
        expected = [list(step.inputs), list(step.outputs)]
        if found != expected:
            raise ArtifactError(
                f"{path}: expected its part {step.section!r} to take {expected[0]} and make "
                f"{expected[1]}, found {found[0]} and {found[1]}; compile the model again"
            )
        _alive.add(self)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Run it once, from onnxruntime's values to such.

        Raises:
            ArtifactError: onnxruntime fails.
            DeviceError: for want of memory; or this process was forked during a run.
        """
        session = self._open()
        feeds = dict(zip(self.step.inputs, values, strict=True))
        with inside():
            try:
                return list(session.run_with_ort_values(list(self.step.outputs), feeds))
            except Exception as error:  # it has a class for every kind of failure
                raise self._failure("fails", error) from error

    def leave_behind(self) -> None:
        """In a forked child: never free the session, which would wait for its threads."""
        if self._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._forget()

    def _forget(self) -> None:
        self._session: Any = None
        self._making = threading.Lock()

    def _open(self) -> Any:
        with self._making:
            if self._session is None:
                onnxruntime = import_onnxruntime(str(self._path), self._made_with)
                with inside():
                    try:
                        self._session = open_session(
                            onnxruntime, bytes(self._content), self._threads
                        )
                    except Exception as error:
                        raise self._failure("cannot be loaded", error) from error
            return self._session

    def _failure(self, what: str, error: Exception) -> NmcompileError:
        if isinstance(error, NmcompileError):
            return error
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        title = f"{self._path}: its part {self.step.section!r}, which onnxruntime runs, {what}"
        if isinstance(error, MemoryError) or "alloc" in text:
            return DeviceError(f"{title} for want of memory ({text}); free some")
        with_ = f"onnxruntime {self._made_with}" if self._made_with else "onnxruntime"
        return ArtifactError(
            f"{title}: {text}; run the model in onnxruntime itself to see whether it takes these "
            f"inputs, install {with_}, or compile the model again"
        )


def import_onnxruntime(title: str, made_with: str = "") -> Any:
    """The module.

    Args:
        title: what needs it.
        made_with: the version that `title` was compiled with, or "".

    Raises:
        DeviceError: it is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        wanted = f"onnxruntime=={made_with}" if made_with else "onnxruntime"
        raise DeviceError(
            f"{title} has parts that onnxruntime runs, and that is not installed here ({error}): "
            f"pip install {wanted}, or see with `nmc compile --rest none` what needs it"
        ) from error
    return onnxruntime


def open_session(onnxruntime: Any, content: bytes, threads: int) -> Any:
    """A session over an ONNX file, whose threads do not spin beside ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Without VNNI its faster sums of products of bytes saturate in 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(content, options, providers=PROVIDERS)


def to_value(array: Any) -> Any:
    """A numpy array as a value of onnxruntime's, over the same memory."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


def _ends(session: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    return session.get_inputs(), session.get_outputs()


def _in_child() -> None:
    for part in list(_alive):
        part.leave_behind()


os.register_at_fork(after_in_child=_in_child)
