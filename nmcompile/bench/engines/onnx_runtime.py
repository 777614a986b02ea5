"""onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nmcompile.bench.engines.engine import Array, Engine


class OnnxRuntime(Engine):
    """All graph optimisations on, which is its default."""

    optimised = True

    def __init__(self, model: Path, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Load `model`; open dimensions take the shapes of what is run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not self.optimised:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        # Its threads would otherwise spin on into the time of the engine measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.version = onnxruntime.__version__
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self._session.get_inputs()]

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order."""
        return list(self._session.run(None, dict(inputs)))

    def close(self) -> None:
        """Free the session."""
        del self._session


class OnnxRuntimeAsDefined(OnnxRuntime):
    """Every operator by itself, as ONNX defines it: what quantised models are held against.

    Optimised, it joins operators and rounds where they met, as every engine does in its own way.
    """

    optimised = False
