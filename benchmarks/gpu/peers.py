"""The same layers by torch: cuDNN's dense convolution, and its 2:4 matrix product for 1x1.

Peers get less to do than our kernels: no bias and no ReLU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.contents import Layer
from benchmarks.gpu.driver import Device
from benchmarks.gpu.timing import Replay

Array = npt.NDArray[Any]
CUDNN = "cuDNN dense"
WARM_UPS = 3  # before a capture: cuDNN tries its algorithms in the first call


class TorchPeers:
    """Torch's convolutions and products on the stream that our kernels take too.

    loops: peers whose calls cannot be captured. is_spoilt: whether a capture failed in this
        process, which had better end then.
    """

    def __init__(self, device: Device | None, place: str = "cuda") -> None:
        """Import torch and make it and the driver share a context and a stream."""
        import torch

        self._torch, self._place = torch, place
        self.loops: set[str] = set()
        self.is_spoilt = False
        torch.backends.cudnn.benchmark = True
        self._stream: Any = None
        if device is not None:
            cuda: Any = torch.cuda
            cuda.init()
            self._stream = cuda.Stream()
            device.stream = self._stream.cuda_stream

    def contenders(
        self, layer: Layer, x: Array, weight: Array, sets: int
    ) -> Iterator[tuple[str, Callable[[], Replay]]]:
        """Names, and what makes each ready; either may raise whatever torch raises."""
        yield (
            CUDNN,
            lambda: self._replay(CUDNN, lambda: self.convolution(layer, x, weight, sets), sets),
        )
        conv = layer.conv
        if conv.is_pointwise and layer.pattern != "dense":
            name = self.sparse_name()
            yield (
                name,
                lambda: self._replay(name, lambda: self.product(layer, x, weight, sets), sets),
            )

    def convolution(self, layer: Layer, x: Array, weight: Array, sets: int) -> Callable[[int], Any]:
        """Dense fp16 convolution, channels last, on set `index`."""
        torch, conv = self._torch, layer.conv
        lines = torch.from_numpy(np.ascontiguousarray(x[..., : conv.in_channels])).to(self._place)
        inputs = [lines.clone().permute(0, 3, 1, 2) for _ in range(sets)]
        dense = torch.from_numpy(weight).to(self._place).half()
        dense = dense.contiguous(memory_format=torch.channels_last)
        weights = [dense.clone() for _ in range(sets)]
        padding = conv.padding[:2]

        def call(index: int) -> Any:
            return torch.nn.functional.conv2d(
                inputs[index], weights[index], None, conv.stride, padding
            )

        return call

    def sparse_name(self) -> str:
        """What multiplies sparse matrices in this torch."""
        cusparselt = getattr(self._torch.backends, "cusparselt", None)
        if cusparselt is not None and cusparselt.is_available():
            return "cuSPARSELt"
        return "CUTLASS 2:4"

    def product(self, layer: Layer, x: Array, weight: Array, sets: int) -> Callable[[int], Any]:
        """A 1x1 convolution as torch's semi-structured matrix product, on set `index`."""
        torch, conv = self._torch, layer.conv
        from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

        SparseSemiStructuredTensor._FORCE_CUTLASS = self.sparse_name() != "cuSPARSELt"
        rows = torch.from_numpy(x.reshape(-1, conv.in_channels)).to(self._place)
        inputs = [rows.clone() for _ in range(sets)]
        matrix = torch.from_numpy(weight.reshape(conv.out_channels, -1)).to(self._place).half()
        weights = [to_sparse_semi_structured(matrix.clone()) for _ in range(sets)]

        def call(index: int) -> Any:
            return torch.nn.functional.linear(inputs[index], weights[index])

        return call

    def square_product(self, size: int) -> Callable[[], Any]:
        """The fp16 product of two random matrices."""
        torch = self._torch
        with self.on_stream():
            a, b = (torch.randn(size, size, device=self._place).half() for _ in range(2))

        def call() -> None:
            with self.on_stream():
                a @ b

        return call

    def on_stream(self) -> Any:
        """Where torch launches on the shared stream."""
        if self._stream is None:
            return contextlib.nullcontext()
        return self._torch.cuda.stream(self._stream)

    def forget(self) -> None:
        """Give cached memory back to the driver."""
        self._torch.cuda.empty_cache()

    def _replay(self, name: str, make: Callable[[], Callable[[int], Any]], sets: int) -> Replay:
        torch = self._torch
        kept: list[Any] = []  # outputs, so that every set has its own

        with torch.no_grad(), self.on_stream():
            call = make()

            def enqueue() -> None:
                kept.clear()
                for index in range(sets):
                    kept.append(call(index))

            for _ in range(WARM_UPS):
                call(0)
            torch.cuda.synchronize()
            loop = Replay(lambda: self._here(enqueue), sets, "loop", kept.clear)
            if name in self.loops:
                return loop
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(
                    graph, stream=self._stream, capture_error_mode="thread_local"
                ):
                    enqueue()
            except RuntimeError:
                torch.cuda.synchronize()  # raises where more is wrong than the capture
                # Torch's allocator may still take it that there is a capture.
                self.loops.add(name)
                self.is_spoilt = True
                return loop

        def close() -> None:
            kept.clear()
            graph.reset()

        return Replay(lambda: self._here(graph.replay), sets, "graph", close)

    def _here(self, launch: Callable[[], None]) -> None:
        with self._torch.no_grad(), self.on_stream():
            launch()
