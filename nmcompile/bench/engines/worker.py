"""Engines that need a process of their own: other pins than ours, or runs that never end.

Messages are plain Python types, which any two versions of Python and numpy agree on. The worker
sends its version when it has loaded the model; then [(dtype, shape, bytes), ...] comes in, and
(seconds, [(dtype, shape, bytes), ...]) goes out.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.bench.engines.engine import Array, Engine, Outputs
from nmcompile.bench.pinning import on_cores
from nmcompile.errors import DeclinedError, DeviceError

LOAD_LIMIT = 600.0  # seconds until a worker has to have loaded its model
RUN_LIMIT = 10.0  # seconds of a run: slower, and thirty rounds would take ten minutes


class WorkerEngine(Engine):
    """Runs in a child process, which ends with `close`.

    The seconds are the worker's own. Taken here they would also count the image's way through the
    pipe and two wake-ups, 2 ms at 224² that engines inside this process do not pay. Between runs
    the worker waits for the pipe, so nothing of it takes time from the engine whose turn it is.
    """

    title = "the engine"

    @cached_property
    def stack(self) -> contextlib.ExitStack:
        """What `close` undoes."""
        return contextlib.ExitStack()

    def start(
        self, words: Sequence[str], threads: int, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start `words` followed by the threads and a pipe's descriptor; wait until it is loaded.

        Args:
            words: the command.
            threads: cores of the worker.
            folder: for its log; kept until `close`.
            environment: variables besides those of this process.

        Raises:
            DeclinedError: it takes too long.
            DeviceError: it ended; says its last line.
        """
        self._log = folder / "log.txt"
        self._pipe, far_end = multiprocessing.Pipe()
        self.stack.callback(self._pipe.close)
        try:
            with on_cores(threads):
                process = subprocess.Popen(
                    [*words, str(threads), str(far_end.fileno())],
                    pass_fds=[far_end.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self.stack.enter_context(self._log.open("wb")),
                    stderr=subprocess.STDOUT,
                    env=os.environ | dict(environment),
                )
            self.stack.callback(process.wait)
            self.stack.callback(process.terminate)
            far_end.close()
            self.version = str(self._receive(LOAD_LIMIT, "to load the model"))
        except BaseException:
            self.close()
            raise

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order."""
        return self.run(inputs)[0]

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        """The outputs, and the worker's seconds.

        Raises:
            DeclinedError: the run takes longer than RUN_LIMIT.
            DeviceError: the worker ended; says its last line.
        """
        with self._explained():
            self._pipe.send([(str(x.dtype), x.shape, x.tobytes()) for x in inputs.values()])
        seconds, outputs = self._receive(RUN_LIMIT, "for one run")
        return [np.frombuffer(data, dt).reshape(shape) for dt, shape, data in outputs], seconds

    def close(self) -> None:
        """End the process."""
        self.stack.close()

    def _receive(self, limit: float, what: str) -> Any:
        with self._explained():
            if not self._pipe.poll(limit):
                raise DeclinedError(
                    f"{self.title} takes more than {limit:g} s {what}: too slow to be measured; "
                    "leave it out, or take a smaller model"
                )
            return self._pipe.recv()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what the worker said last, where it is gone."""
        try:
            yield
        except (EOFError, OSError) as error:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise DeviceError(
                f"the process of {self.title} ended: {(lines or ['without a word'])[-1]}; try it "
                "on another model, or leave it out"
            ) from error
