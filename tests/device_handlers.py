"""What the devices of the fleet tests answer, and how they die."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from nmcompile.devices import DeviceServer
from nmcompile.errors import DeviceError


def kill(server: DeviceServer) -> None:
    """As a device that loses its power."""
    process = psutil.Process(server.pid)
    for one in (*process.children(recursive=True), process):
        one.kill()


def handle(request: Mapping[str, Any]) -> dict[str, Any]:
    """Sleep, then do as asked: answer with the length of a file, fail, crash or hang."""
    time.sleep(request.get("sleep", 0.0))
    what = request.get("do", "")
    if what == "fail":
        raise DeviceError("this device lacks avx1024")
    if what == "crash once" and not Path(request["mark"]).exists():
        Path(request["mark"]).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(3600)
    if what == "copy":
        Path("copied").write_bytes(Path("sent").read_bytes())
    return {"pid": os.getpid(), "number": request.get("number")}
