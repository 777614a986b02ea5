"""Our kernels on one layer: operands in the GPU's memory, results checked, calls in a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.contents import Kit, Layer, Variant
from benchmarks.gpu.data import errors, layer_arrays, layer_input, reference
from benchmarks.gpu.driver import Buffer, Device, DriverError, Graph, Loaded
from benchmarks.gpu.timing import Replay
from nmcompile.kernels.sparse_tensor_core.packing import pack_bias, pack_weights

Array = npt.NDArray[Any]
TOLERANCE = 2e-2  # of random results, relative to float32


class Mismatch(Exception):
    """A kernel's output is not the reference's."""


class Packed:
    """Weights and biases as kernels read them, kept: batches of one layer share them."""

    def __init__(self) -> None:
        self._arrays: dict[Any, tuple[Array, Array]] = {}
        self._packed: dict[Any, dict[str, Array]] = {}

    def arrays(self, layer: Layer, exact: bool) -> tuple[Array, Array]:
        """Weight (OIHW) and bias of a layer."""
        key = (replace(layer.conv, batch=1), layer.pattern, layer.seed, exact)
        if key not in self._arrays:
            self._arrays[key] = layer_arrays(layer.conv, layer.pattern, exact, layer.seed)
        return self._arrays[key]

    def operands(self, layer: Layer, variant: Variant, exact: bool) -> dict[str, Array]:
        """What a kernel takes besides activations, by the names of its arguments."""
        gemm, config = layer.gemm(variant), variant.config
        key = (
            *(replace(layer.conv, batch=1), layer.pattern, layer.seed, exact),
            *(gemm.sparse, config.channels, config.warp_channels),
        )
        if key not in self._packed:
            weight, bias = self.arrays(layer, exact)
            self._packed[key] = {
                "weights": pack_weights(weight, gemm),
                "bias": pack_bias(bias, gemm),
            }
        return self._packed[key]


class LayerOnGpu:
    """Memory of one layer: inputs and outputs in several sets, operands of each packing."""

    def __init__(self, device: Device, kit: Kit, packed: Packed, math: Any, layer: Layer) -> None:
        self._device, self._kit, self._packed, self._math = device, kit, packed, math
        self.layer = layer
        self._buffers: list[Buffer] = []
        self._inputs: list[Buffer] = []
        self._outputs: list[Buffer] = []
        self._operands: dict[int, list[dict[str, Buffer]]] = {}
        self._scratch = Buffer(0, 0)
        self._expected: Any = None
        conv = layer.conv
        gemm = layer.gemm(layer.variants[0])
        self._shape = (conv.batch, conv.out_height, conv.out_width, gemm.out_channels)
        self.input_bytes = conv.batch * conv.in_height * conv.in_width * gemm.in_channels * 2
        self.output_bytes = int(np.prod(self._shape)) * 2
        self.exact = True

    def fill(self, exact: bool, sets: int) -> None:
        """Draw inputs and compute what they have to give."""
        self.release()
        self.exact = exact
        layer, device = self.layer, self._device
        x = layer_input(layer.conv, exact, layer.seed + 2)
        self.x = x
        weight, bias = self._packed.arrays(layer, exact)
        self._expected = reference(self._math, layer.conv, x, weight, bias)
        first = self._keep(device.upload(x))
        self._inputs = [first]
        for _ in range(sets - 1):
            self._inputs.append(self._copy(first))
        self._outputs = [self._keep(device.allocate(self.output_bytes)) for _ in range(sets)]
        device.synchronize()

    def release(self) -> None:
        """Free all memory."""
        for buffer in self._buffers:
            self._device.free(buffer)
        self._buffers.clear()
        self._operands.clear()
        self._scratch = Buffer(0, 0)

    def check(self, variant: Variant) -> tuple[float, float]:
        """Launch a variant once and compare; returns the errors by norm and by maximum.

        Raises:
            Mismatch: whole numbers differ at all, or random ones by more than the tolerance.
            DriverError: the kernel cannot be launched, or fails.
        """
        device, output = self._device, self._outputs[0]
        device.poison(output)
        functions = self._load(variant)
        try:
            self._launch(variant, functions, 0)
            found = device.download(output, self._shape, "float16")
        finally:
            self._unload(functions)
        conv, math = self.layer.conv, self._math
        expected = math.rounded(self._expected) if self.exact else self._expected
        actual = math.array(found[..., : conv.out_channels])
        norm, largest = errors(math, actual, expected)
        if self.exact and largest != 0.0:
            wrong = int((actual != expected).sum())
            raise Mismatch(f"{wrong} of {found.size} whole numbers differ (error {largest:.2g})")
        # Not <=: NaN is above every bound.
        if not (norm < TOLERANCE and largest < TOLERANCE):
            raise Mismatch(f"error {norm:.2g} by norm, {largest:.2g} at most: bound {TOLERANCE:g}")
        return norm, largest

    def replay(self, variant: Variant) -> Replay:
        """One call per set of buffers, in a graph if they can be captured."""
        device = self._device
        functions = self._load(variant)

        def enqueue() -> None:
            for index in range(len(self._inputs)):
                self._launch(variant, functions, index)

        enqueue()
        device.synchronize()
        calls = len(self._inputs)
        try:
            graph: Graph = device.capture(enqueue)
        except DriverError:
            device.synchronize()  # raises where more is wrong than the capture
            return Replay(enqueue, calls, "loop", lambda: self._unload(functions))

        def close() -> None:
            graph.close()
            self._unload(functions)

        return Replay(graph.launch, calls, "graph", close)

    def _keep(self, buffer: Buffer) -> Buffer:
        self._buffers.append(buffer)
        return buffer

    def _copy(self, source: Buffer) -> Buffer:
        buffer = self._keep(self._device.allocate(source.nbytes))
        self._device.copy(buffer, source)
        return buffer

    def _load(self, variant: Variant) -> list[Loaded]:
        cubin = self._kit.read(variant.cubin)
        return [
            self._device.load(cubin, launch.kernel, launch.shared_bytes)
            for launch in variant.launches
        ]

    def _unload(self, functions: list[Loaded]) -> None:
        for function in functions:
            self._device.unload(function)

    def _launch(self, variant: Variant, functions: list[Loaded], index: int) -> None:
        operands = self._operands_of(variant)[index]
        buffers = {**operands, "x": self._inputs[index], "out": self._outputs[index]}
        buffers["scratch"] = self._scratch
        for launch, function in zip(variant.launches, functions, strict=True):
            addresses = [buffers[name].address for name in launch.arguments]
            self._device.launch(function, launch.grid, launch.block, launch.shared_bytes, addresses)

    def _operands_of(self, variant: Variant) -> list[dict[str, Buffer]]:
        """Operands in every set; those of equal packing are shared between variants."""
        gemm = self.layer.gemm(variant)
        needed = int(np.prod(gemm.scratch_shape)) * 4 if variant.config.splits > 1 else 0
        if needed > self._scratch.nbytes:
            self._scratch = self._keep(self._device.allocate(needed))
        arrays = self._packed.operands(self.layer, variant, self.exact)
        key = id(arrays)
        if key not in self._operands:
            first = {name: self._keep(self._device.upload(a)) for name, a in arrays.items()}
            sets = [first]
            for _ in range(len(self._inputs) - 1):
                sets.append({name: self._copy(buffer) for name, buffer in first.items()})
            self._device.synchronize()
            self._operands[key] = sets
        return self._operands[key]
