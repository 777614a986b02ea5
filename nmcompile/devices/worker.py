"""Measures one artifact in the working directory: a JSON request on stdin, the answer on stdout.

Request: `artifact` and `inputs`, the .nmc and the .npz file to run; `outputs`, the .npz file to
leave; `threads` (null: all cores); `rounds`, `warmup`; `profile`, whether to time layers.

Answer: `samples_ms` of all timed runs; `layers`, a list of {layer, symbol, ms}; `threads`;
`load_ms`; `machine`, as results of nmc bench describe it; `load`, what else was on its cores.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nmcompile import runtime
from nmcompile.bench.machine import describe_machine
from nmcompile.bench.noise import LoadMeter
from nmcompile.devices.process import die_with_parent
from nmcompile.errors import NmcompileError


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request.

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
        layers = session.profile(inputs) if request["profile"] else []
        return {
            "samples_ms": [second * 1e3 for second in seconds],
            "layers": [{"layer": t.layer, "symbol": t.symbol, "ms": t.ms} for t in layers],
            "threads": session.threads,
            "load_ms": load_ms,
            "machine": msgspec.to_builtins(describe_machine()),
            "load": asdict(load),
        }


def main() -> int:
    """Answer; 1 with a message on stderr where that fails."""
    die_with_parent()
    try:
        print(json.dumps(measure(json.load(sys.stdin))))
    except NmcompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
