"""Runs jobs in worker processes, within a time, and starts a new one where a job broke the last.

The process that supervises never touches the GPU.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Clock = Callable[[], float]
START_SECONDS = 120.0  # a worker's: importing torch from a cold disk


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, or a failure, what was being done then, and how it ended.

    ended: "" where the worker lives on, else why it does not: "lost the GPU", "died", "too slow".
    """

    result: Any = None
    failure: str = ""
    step: str = ""
    ended: str = ""


@dataclass
class Supervisor:
    """Hands jobs to one worker at a time.

    command: starts a worker. log: where its errors go. retries: of one job whose worker ended,
        each without the contender that ended it.
    """

    command: Sequence[str]
    log: Path
    clock: Clock = time.monotonic
    retries: int = 4
    failures: list[dict[str, str]] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _pending: bytes = b""

    def run(self, job: dict[str, Any], name: str, deadline: float) -> Any:
        """The result of a job, None where there is none; what went wrong is in `failures`."""
        skip: list[str] = []
        for _ in range(self.retries + 1):
            outcome = self._attempt({**job, "skip": skip}, deadline)
            if not outcome.failure:
                return outcome.result
            text = outcome.failure
            self.failures.append({"job": name, "step": outcome.step, "failure": text})
            contender = outcome.step.split(": ")[0]
            # Trying again helps only without the one contender that was running.
            if outcome.ended not in ("lost the GPU", "died") or contender in ("", *skip):
                return None
            skip.append(contender)
        return None

    def close(self) -> None:
        """End the worker, and what it started."""
        process, self._process, self._pending = self._process, None, b""
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def _attempt(self, job: dict[str, Any], deadline: float) -> Outcome:
        process = self._start()
        assert process.stdin is not None
        try:
            process.stdin.write((json.dumps(job) + "\n").encode())
            process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended is in its events
        step = ""
        while True:
            line = self._line(process, deadline)
            if line is None:
                late = self.clock() >= deadline
                code = process.poll()
                self.close()
                if late:
                    return Outcome(
                        failure="did not finish in its time", step=step, ended="too slow"
                    )
                return Outcome(
                    failure=f"the process ended (code {code}); see {self.log.name}",
                    step=step,
                    ended="died",
                )
            event = json.loads(line)
            if "step" in event:
                step = event["step"]
            elif "result" in event:
                if event["last"]:
                    self.close()
                return Outcome(result=event["result"])
            elif event["fatal"]:
                self.close()
                return Outcome(failure=event["failure"], step=step, ended="lost the GPU")
            else:
                return Outcome(failure=event["failure"], step=step)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with open(self.log, "ab") as log:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # torch's compilers are ended with it
                )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """The next event; None at the deadline, or where the worker has ended."""
        assert process.stdout is not None
        while b"\n" not in self._pending:
            left = deadline - self.clock()
            if left <= 0:
                return None
            ready, _, _ = select.select([process.stdout], [], [], left)
            if not ready:
                return None
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                process.wait()
                return None
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line
