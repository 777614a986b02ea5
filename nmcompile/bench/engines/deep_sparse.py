"""DeepSparse 1.8 as a peer: discontinued, and with pins that our environment cannot have.

So it runs in a process of its own, with the python of `.venv-deepsparse` (`make deepsparse`) in
the working directory, or of the folder in NMC_DEEPSPARSE. Unlike that of the other peers, its time
depends on the weights.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nmcompile.bench.engines.worker import WorkerEngine
from nmcompile.errors import DeviceError

WORKER = Path(__file__).with_name("deep_sparse_worker.py")


def environment() -> Path:
    """The folder of its Python environment, whether it exists or not."""
    return Path(os.environ.get("NMC_DEEPSPARSE", ".venv-deepsparse"))


def deepsparse_version() -> str:
    """The version that `make deepsparse` installed.

    Raises:
        DeviceError: there is no such environment.
    """
    folders = [str(folder) for folder in environment().glob("lib/python*/site-packages")]
    for found in importlib.metadata.distributions(name="deepsparse", path=folders):
        return found.version
    raise DeviceError(
        f"DeepSparse is not installed in {environment().name}: run `make deepsparse` in the "
        "repository, or name the folder of its environment in NMC_DEEPSPARSE"
    )


class DeepSparse(WorkerEngine):
    """DeepSparse on its own copy of the model.

    Its threads sleep between runs: they use under 0.1 ms in the 10 ms after one.
    """

    title = "DeepSparse"

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load an ONNX model.

        Raises:
            DeviceError: it is not installed, does not take the model or ended early.
        """
        deepsparse_version()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        words = [str(environment().absolute() / "bin/python"), str(WORKER), str(model)]
        # By default it reports its use to its makers.
        self.start(words, threads, folder, {"NM_DISABLE_ANALYTICS": "1"})
        self.inputs = list(shapes)
