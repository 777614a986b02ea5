"""What the devices of the fleet tests answer, and how they die."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from nmcompile.devices import DeviceServer
from nmcompile.devices.job import run_job
from nmcompile.devices.worker import answer
from nmcompile.errors import DeviceError
from nmcompile.runtime import cpu


def kill(server: DeviceServer) -> None:
    """As a device that loses its power."""
    process = psutil.Process(server.pid)
    for one in (*process.children(recursive=True), process):
        one.kill()


def handle(request: Mapping[str, Any]) -> dict[str, Any]:
    """Say who is at work, sleep, then do as asked: copy a file, fail, crash or hang."""
    if "started" in request:
        Path(request["started"], str(os.getpid())).touch()
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


def never_measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """As a device that does all but measure kernels: whoever kills it then finds it at work."""
    if request["task"] == "kernels":
        time.sleep(60)
    return run_job(request)


def without_vectors(request: Mapping[str, Any]) -> dict[str, Any]:
    """As a device whose CPU, or host, has neither AVX-512 nor AVX2."""
    return _on_other_cpu(request, "avx", "none")


def of_other_model(request: Mapping[str, Any]) -> dict[str, Any]:
    """As a device with another CPU."""
    return _on_other_cpu(request, "model name\t: ", "model name\t: Other ")


def of_fewer_cores(request: Mapping[str, Any]) -> dict[str, Any]:
    """As a device whose work is kept to one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return answer(request)


def _on_other_cpu(request: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    changed = Path("cpuinfo")
    changed.write_text(cpu.CPUINFO.read_text().replace(old, new))
    cpu.CPUINFO = changed
    return answer(request)
