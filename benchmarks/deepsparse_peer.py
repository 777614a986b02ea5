"""DeepSparse 1.8 as a peer: discontinued, and with pins that our environment cannot have.

So it runs in a process of its own, with the python of `.venv-deepsparse` (`make deepsparse`).
Unlike that of the other peers, its time depends on the weights.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.peers import Array, Engine, on_cores
from nmcompile.errors import DeviceError

ENVIRONMENT = Path(__file__).parents[1] / ".venv-deepsparse"
WORKER = Path(__file__).with_name("deepsparse_worker.py")


def deepsparse_version() -> str:
    """The version that `make deepsparse` installed.

    Raises:
        DeviceError: there is no such environment.
    """
    folders = [str(folder) for folder in ENVIRONMENT.glob("lib/python*/site-packages")]
    for found in importlib.metadata.distributions(name="deepsparse", path=folders):
        return found.version
    raise DeviceError(f"DeepSparse is not installed in {ENVIRONMENT.name}: run `make deepsparse`")


@contextlib.contextmanager
def deepsparse_engine(model: bytes, threads: int) -> Iterator[Engine]:
    """DeepSparse on `threads` cores; its process ends with the context.

    The seconds are the worker's own. Taken here they would also count the image's way through the
    pipe and two wake-ups, 2 ms at 224² that the engines inside this process do not pay. Between
    runs the worker waits for the pipe and DeepSparse's threads sleep (they use under 0.1 ms in the
    10 ms after a run), so nothing of it takes time from the engine whose turn it is.

    Raises:
        DeviceError: it is not installed, does not take the model or ended early.
    """
    deepsparse_version()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path, log = folder / "model.onnx", folder / "log.txt"
        path.write_bytes(model)
        pipe, far_end = multiprocessing.Pipe()
        stack.callback(pipe.close)
        words = [path, threads, far_end.fileno()]
        with on_cores(threads):
            process = subprocess.Popen(
                [str(word) for word in (ENVIRONMENT / "bin/python", WORKER, *words)],
                pass_fds=[far_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
                # By default it reports its use to its makers.
                env=os.environ | {"NM_DISABLE_ANALYTICS": "1"},
            )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        far_end.close()

        def run(x: Array) -> tuple[Array, float]:
            with _explained(log):
                pipe.send((x.shape, x.tobytes()))
                seconds, shape, data = pipe.recv()
            return np.frombuffer(data, np.float32).reshape(shape), seconds

        with _explained(log):
            pipe.recv()
        yield run


@contextlib.contextmanager
def _explained(log: Path) -> Iterator[None]:
    """Says what the worker said last, where it is gone."""
    try:
        yield
    except (EOFError, OSError) as error:
        lines = log.read_text(errors="replace").strip().splitlines() or ["without a word"]
        raise DeviceError(f"DeepSparse's process ended: {lines[-1]}") from error
