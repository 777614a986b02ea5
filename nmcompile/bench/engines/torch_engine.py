"""torch on the CPU: eager, and compiled by Inductor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nmcompile.bench.engines.engine import Array, Engine, zeros
from nmcompile.frontends.onnx_export import arguments


class TorchEager(Engine):
    """Operator by operator, without gradients."""

    def __init__(self, model: Any, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """Take a module that was exported with the inputs of `shapes`, in their order."""
        import torch

        self._torch, self._threads = torch, threads
        self.version = str(torch.__version__)
        self.inputs = list(shapes)
        self._model, self._exported = model, model

    def compute(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs in the model's order."""
        torch = self._torch
        # One number for the whole process, which another engine may have changed.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        tensors = [torch.from_numpy(inputs[name]) for name in self.inputs]
        args, kwargs = arguments(self._exported, tensors)
        with torch.no_grad():
            result = self._model(*args, **kwargs)
        return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(result)]

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._exported = None


class TorchCompiled(TorchEager):
    """`torch.compile` with constants folded; compiles when it is made."""

    def __init__(self, model: Any, shapes: Mapping[str, Sequence[int]], threads: int) -> None:
        """As `TorchEager`; needs a C++ compiler, and half a minute the first time."""
        super().__init__(model, shapes, threads)
        # One compiling thread: others would stay behind as processes.
        options = {"freezing": True, "compile_threads": 1}
        self._model = self._torch.compile(model, options=options)
        self.compute(zeros(shapes))
