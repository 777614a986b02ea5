"""Runs one ONNX model in DeepSparse: the far end of benchmarks/deepsparse_peer.py's pipe.

    python deepsparse_worker.py MODEL THREADS DESCRIPTOR

Runs in DeepSparse's own environment, so it imports nothing of this repository. Messages are plain
Python types, which any two versions of Python and numpy agree on: (shape, float32 bytes) comes in,
(seconds, shape, float32 bytes) goes out.
"""

from __future__ import annotations

import sys
import time
from multiprocessing.connection import Connection

import deepsparse  # type: ignore[import-not-found]
import numpy as np


def serve(model: str, threads: int, pipe: Connection) -> None:
    """Load the model, say so, then answer every image until the pipe closes."""
    engine = deepsparse.Engine(model, batch_size=None, num_cores=threads)
    pipe.send("ready")
    while True:
        try:
            shape, data = pipe.recv()
        except EOFError:
            return
        inputs = [np.frombuffer(data, np.float32).reshape(shape)]
        begin = time.perf_counter()
        outputs = engine.run(inputs, val_inp=False)
        seconds = time.perf_counter() - begin
        pipe.send((seconds, outputs[0].shape, outputs[0].tobytes()))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Connection(int(sys.argv[3])))
