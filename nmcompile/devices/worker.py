"""Does one task in the working directory: a JSON request on stdin, the answer on stdout.

What a request asks for is its `task`, a name in `TASKS`; the functions there say what else is in
it, and what they answer. All answers say what they are from: `cpu`, the model as
`runtime.cpu.model` spells it, and `cores`, how many the worker may use.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nmcompile import runtime
from nmcompile.devices.process import die_with_parent
from nmcompile.errors import InputError, NmcompileError
from nmcompile.machine.describe import describe_machine
from nmcompile.machine.load import LoadMeter
from nmcompile.machine.roofs import RoofLoop, time_roofs
from nmcompile.machine.trial import Trial, measure_trial, thread_counts
from nmcompile.runtime.native import available_threads, native_runtime


def measure_artifact(request: Mapping[str, Any]) -> dict[str, Any]:
    """Time a compiled model.

    Request: `artifact` and `inputs`, the .nmc and the .npz file to run; `outputs`, the .npz file to
    leave; `threads` (null: all cores); `rounds`, `warmup`; `roofs`, null or the `library` of the
    loops of `nmcompile.machine.roofs` and what it says of its `loop`.

    Answer: `samples_ms` of all timed runs; `layers`, a list of {layer, symbol, ms}; `threads`;
    `load_ms`; `machine`, as results of nmc bench describe it; `load`, what else was on its cores;
    `roofs`, null or {fma, load, vnni, ...} in GFLOP/s, null where the library has no such loop.

    Raises:
        NmcompileError: this machine cannot run the artifact, or the inputs do not fit it.
    """
    begin = time.perf_counter()
    with runtime.load(Path(request["artifact"]), threads=request["threads"]) as session:
        load_ms = (time.perf_counter() - begin) * 1e3
        with np.load(request["inputs"], allow_pickle=False) as stored:
            inputs = dict(stored)
        meter = LoadMeter(os.sched_getaffinity(0))
        np.savez(request["outputs"], **session.run(inputs))
        seconds = session.bench(inputs, request["rounds"], request["warmup"])
        load = meter.read()
        layers = session.profile(inputs)
        roofs = request["roofs"]
        if roofs is not None:  # the artifact has shown that this machine can run them
            found = time_roofs(_load_library(roofs["library"]), RoofLoop(**roofs["loop"]))
            roofs = asdict(found)
        return {
            "samples_ms": [second * 1e3 for second in seconds],
            "layers": [{"layer": t.layer, "symbol": t.symbol, "ms": t.ms} for t in layers],
            "threads": session.threads,
            "load_ms": load_ms,
            "machine": msgspec.to_builtins(describe_machine()),
            "load": asdict(load),
            "roofs": roofs,
        }


def measure_kernels(request: Mapping[str, Any]) -> dict[str, Any]:
    """Time kernels that compute the same.

    Request: `library` and `arrays`, the shared library and the .npz file of its constants; `trial`,
    a `Trial`; `features` of the CPU that the library needs, and `what` does.

    Answer: the fields of `Measured`, on one thread and on all cores.

    Raises:
        DeviceError: this machine lacks a feature.
    """
    runtime.cpu.require(request["features"], request["what"])
    with np.load(request["arrays"], allow_pickle=False) as stored:
        arrays = dict(stored)
    module = _load_library(request["library"])
    trial = Trial.from_json(request["trial"])
    return asdict(measure_trial(module, trial, arrays, thread_counts()))


def check_features(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer nothing where this machine can run what needs `features` of the CPU, `what` says it.

    Raises:
        DeviceError: it cannot.
    """
    runtime.cpu.require(request["features"], request["what"])
    return {}


TASKS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "artifact": measure_artifact,
    "kernels": measure_kernels,
    "check": check_features,
}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request.

    Raises:
        InputError: there is no such task.
        NmcompileError: as the task says.
    """
    task = str(request.get("task"))
    if task not in TASKS:
        raise InputError(
            f"the nmcompile of this device knows the tasks {', '.join(TASKS)}, asked was {task!r}: "
            "install the same version here and there"
        )
    return TASKS[task](request) | {"cpu": runtime.cpu.model(), "cores": available_threads()}


def _load_library(name: str) -> Any:
    return native_runtime().load_module(str(Path(name).resolve()))


def main() -> int:
    """Answer; 1 with a message on stderr where that fails."""
    die_with_parent()
    try:
        print(json.dumps(answer(json.load(sys.stdin))))
    except NmcompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
