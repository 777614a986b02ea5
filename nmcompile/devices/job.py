"""What a device does with a job: runs it in a process of its own, so that a crash is its alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from nmcompile.errors import DeviceError


def run_job(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request of `nmcompile.devices.worker` in the session's folder.

    Raises:
        DeviceError: the worker failed, with its own message, or crashed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "nmcompile.devices.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise DeviceError(f"the job crashed with {name}; its last words: {_last(done.stderr)}")
    if done.returncode:
        raise DeviceError(_last(done.stderr))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "none"
