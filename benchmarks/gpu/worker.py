"""The process that uses the GPU: takes jobs as lines of JSON, answers with events.

A kernel that reads past its memory leaves its process without a GPU, and a compiler may hang: so
jobs run here, and whoever started this (`supervisor.py`) sees which step was the last.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.contents import Kit, with_pattern
from benchmarks.gpu.data import NumpyMath, TorchMath
from benchmarks.gpu.driver import Device, DriverError
from benchmarks.gpu.layers import LayerBench
from benchmarks.gpu.models import Request, run_model
from benchmarks.gpu.peers import TorchPeers
from benchmarks.gpu.roofs import Roofs


class Worker:
    """The state between jobs."""

    def __init__(self, folder: Path, emit: Callable[[dict[str, Any]], None]) -> None:
        self._emit = emit
        self._device = Device()
        self._kit = Kit(folder, self._device.arch)
        self._torch, self._why = _find_torch()
        math: Any = NumpyMath()
        peers = None
        if self._torch is not None:
            peers, math = TorchPeers(self._device), TorchMath()
        self._bench = LayerBench(self._device, self._kit, math, peers)

    def hello(self) -> dict[str, Any]:
        """What is measured on."""
        device = self._device
        fields: dict[str, Any] = {
            "gpu": device.name,
            "arch": device.arch,
            "sms": device.sms,
            "l2_bytes": device.l2_bytes,
            "memory_bytes": device.memory,
            "driver": f"{device.driver // 1000}.{device.driver % 1000 // 10}",
            "python": sys.version.split()[0],
            "torch": None,
            "torch_missing": self._why,
        }
        if self._torch is not None:
            torch = self._torch
            fields["torch"] = torch.__version__
            fields["cuda"] = torch.version.cuda
            fields["cudnn"] = torch.backends.cudnn.version()
        return fields

    def run(self, job: Mapping[str, Any]) -> Any:
        """The result of one job."""
        contents, kind = self._kit.contents, job["kind"]

        def step(name: str) -> None:
            self._emit({"step": name})

        skip = set(job.get("skip", ()))
        if self._bench.peers is not None:
            self._bench.peers.loops.update(job.get("loops", ()))
        if kind == "hello":
            return self.hello()
        if kind == "roofs":
            return dataclasses.asdict(self._bench.roofs(step))
        if kind == "layer":
            layer = contents.layers[job["index"]]
            return self._bench.run(layer, Roofs(**job["roofs"]), step, skip)
        if kind == "check":
            layer = with_pattern(contents.layers[job["index"]], job["pattern"])
            return self._bench.check(layer, step, skip)
        assert kind == "model", kind
        request = Request(job["pattern"], job["compiled"], job["timed"], skip)
        model = contents.models[job["index"]]
        return run_model(self._device, self._kit, model, request, self._torch, step)

    @property
    def is_spoilt(self) -> bool:
        """Whether later jobs had better run in another process."""
        return self._bench.peers is not None and self._bench.peers.is_spoilt

    def is_alive(self) -> bool:
        """Whether the GPU still answers this process."""
        try:
            self._device.synchronize()
        except DriverError:
            return False
        return True


def _find_torch() -> tuple[Any, str]:
    """Torch, or why there is none with a GPU."""
    try:
        import torch
    except Exception as error:  # a broken installation raises whatever
        return None, f"torch cannot be imported ({type(error).__name__}: {error})"
    if not torch.cuda.is_available():
        return None, f"torch {torch.__version__} sees no GPU"
    return torch, ""


def main(folder: Path) -> int:
    """Serve jobs until standard input ends."""
    # With torch there, tvm_ffi compiles an extension otherwise, which takes a minute.
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    # What libraries print must not end up among the events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        worker = Worker(folder, emit)
    except Exception as error:
        traceback.print_exc()
        emit({"failure": _message(error), "fatal": True})
        return 1
    for line in sys.stdin:
        try:
            emit({"result": worker.run(json.loads(line)), "last": worker.is_spoilt})
        except Exception as error:  # of whatever torch or TVM raise: it goes into the result
            traceback.print_exc()
            alive = worker.is_alive()
            emit({"failure": _message(error), "fatal": not alive})
            if not alive:
                return 1
    return 0


def _message(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text}"[:1000]
