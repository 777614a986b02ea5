"""Compiles one ONNX model with TVM's defaults and runs it: the far end of tvm_stock.py's pipe.

python -m nmcompile.bench.engines.tvm_stock_worker MODEL NAME=1,3,224,224 ... THREADS DESCRIPTOR
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from nmcompile import runtime


def compile_stock(model: str, shapes: Mapping[str, Sequence[int]]) -> Any:
    """TVM's own `main`, for the CPU of this machine."""
    import tvm

    from nmcompile.frontends import open_model
    from nmcompile.targets import TARGETS

    module = open_model(model, shapes=shapes).to_relax()
    # The newest CPU that this one can run; "generic" where it is none of ours.
    features = runtime.cpu.host()[1]
    cpus = [t.llvm_cpu for t in TARGETS if t.llvm_cpu and set(t.cpu_features) <= features]
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpus[0] if cpus else "generic"})
    executable = tvm.relax.build(module, target)
    return tvm.relax.VirtualMachine(executable, tvm.cpu())["main"]


def serve(model: str, shapes: Mapping[str, Sequence[int]], pipe: Connection) -> None:
    """Load the model, say so, then answer every request until the pipe closes."""
    import tvm

    main = compile_stock(model, shapes)
    pipe.send(tvm.__version__)
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        inputs = [
            tvm.runtime.tensor(np.frombuffer(data, dtype).reshape(shape))
            for dtype, shape, data in request
        ]
        begin = time.perf_counter()
        result = main(*inputs)
        seconds = time.perf_counter() - begin
        outputs = [result.numpy()] if hasattr(result, "numpy") else [out.numpy() for out in result]
        pipe.send((seconds, [(str(out.dtype), out.shape, out.tobytes()) for out in outputs]))


if __name__ == "__main__":
    import signal

    # An interrupt is the parent's: it keeps what was measured, and then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, path, *words, _threads, descriptor = sys.argv
    given = [word.rpartition("=") for word in words]
    serve(
        path,
        {name: tuple(map(int, dims.split(","))) for name, _, dims in given},
        Connection(int(descriptor)),
    )
