"""TVM with its own default pipeline and schedules, in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nmcompile.bench.engines.worker import WorkerEngine


class StockTvm(WorkerEngine):
    """A process, because neither its compilation nor a run of it can be stopped otherwise."""

    title = "stock TVM"

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Compile an ONNX model.

        Raises:
            DeclinedError: it takes longer than the limits of `WorkerEngine`.
        """
        folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        words = [sys.executable, "-m", f"{__package__}.tvm_stock_worker", str(model)]
        words += [f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
        self.start(words, threads, Path(folder), {"TVM_NUM_THREADS": str(threads)})
        self.inputs = list(shapes)
