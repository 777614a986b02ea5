"""Runs one ONNX model in DeepSparse: the far end of deep_sparse.py's pipe, see worker.py.

    python deep_sparse_worker.py MODEL THREADS DESCRIPTOR

Runs in DeepSparse's own environment, so it imports nothing of this repository.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
import time
from multiprocessing.connection import Connection

import deepsparse  # type: ignore[import-not-found]
import numpy as np


def serve(model: str, threads: int, pipe: Connection) -> None:
    """Load the model, say so, then answer every request until the pipe closes."""
    engine = deepsparse.Engine(model, batch_size=None, num_cores=threads)
    pipe.send(importlib.metadata.version("deepsparse"))
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        inputs = [np.frombuffer(data, dtype).reshape(shape) for dtype, shape, data in request]
        begin = time.perf_counter()
        outputs = engine.run(inputs, val_inp=False)
        seconds = time.perf_counter() - begin
        pipe.send((seconds, [(str(out.dtype), out.shape, out.tobytes()) for out in outputs]))


if __name__ == "__main__":
    # An interrupt is the parent's: it keeps what was measured, and then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.argv[1], int(sys.argv[2]), Connection(int(sys.argv[3])))
