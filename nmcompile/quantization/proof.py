"""Zeros of the weights are zeros of the integers, and the integers hold the pattern."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from nmcompile.errors import PatternError, WeightError
from nmcompile.quantization.folded import FoldedModel, outputs_first
from nmcompile.sparsity import Dense, Unstructured, check, detect

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Integers:
    """The weight of a layer as integers.

    weight: int8, in the axes of the layer's float weight.
    scale: float32, one per output channel.
    """

    weight: Array
    scale: Array

    @property
    def real(self) -> Array:
        """What the integers stand for, float64."""
        scale = self.scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        real: Array = self.weight * scale.astype(np.float64)
        return real


@dataclass(frozen=True)
class Proof:
    """What holds on the integers of a layer.

    pattern: of the integers.
    density: share of integers that are not zero.
    rounded: weights that were not zero and are now.
    """

    pattern: str
    density: float
    rounded: int


def read_integers(model: FoldedModel, quantised: onnx.ModelProto) -> dict[str, Integers]:
    """The integers of every layer that is quantised, by its name."""
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    made = {name: node for node in quantised.graph.node for name in node.output}
    layers = {layer.name: layer for layer in model.layers}
    found = {}
    for node in quantised.graph.node:
        layer = layers.get(node.name)
        source = made.get(node.input[1]) if layer is not None else None
        if layer is None or source is None or source.op_type != "DequantizeLinear":
            continue
        weight, scale, *zero = (numpy_helper.to_array(constants[name]) for name in source.input)
        if weight.dtype != np.int8 or any(point.any() for point in zero):
            raise WeightError(
                f"layer {layer.name}: expected symmetric int8 weights, found {weight.dtype} with "
                f"a zero point of {zero[0].reshape(-1)[:1] if zero else 0}; update onnxruntime"
            )
        if not outputs_first(node):
            weight = weight.T
        found[layer.name] = Integers(weight, np.broadcast_to(scale.reshape(-1), len(weight)))
    return found


def prove(
    model: FoldedModel, integers: dict[str, Integers], leave: Collection[str]
) -> dict[str, Proof]:
    """Check what a sparse kernel relies on, layer by layer.

    Args:
        model: the float model.
        integers: of the quantised one.
        leave: names of the layers that were to stay in float32.

    Raises:
        WeightError: a weight that was zero is none, or a layer was not quantised.
        PatternError: the integers do not hold the pattern that the float weights had.
    """
    proofs = {}
    for layer in model.layers:
        if layer.name in leave:
            continue
        if layer.name not in integers:
            raise WeightError(
                f"layer {layer.name}: expected int8 weights, found float32: onnxruntime's tools "
                f"left it alone; say so with --keep-float '{layer.name}'"
            )
        whole = integers[layer.name].weight
        if whole.shape != layer.weight.shape:
            raise WeightError(
                f"layer {layer.name}: expected integers of the shape {layer.weight.shape}, found "
                f"{whole.shape}; this is a defect of nmcompile: please report it with the model"
            )
        zero = layer.weight == 0
        lost = int(np.count_nonzero(whole[zero]))
        if lost:
            raise WeightError(
                f"layer {layer.name}: {lost} of {np.count_nonzero(zero)} zeros are no zeros after "
                "quantisation: expected all of them to stay; leave the layer in float32 with "
                f"--keep-float '{layer.name}', and report it"
            )
        before, after = detect(layer.weight), detect(whole)
        if not isinstance(before.pattern, Dense | Unstructured):
            broken = check(whole, before.pattern)
            if broken.violations:
                raise PatternError(
                    f"layer {layer.name}: the integers break the pattern {before.pattern} of the "
                    f"float weights {broken.violations} times, first at {broken.first}; leave the "
                    f"layer in float32 with --keep-float '{layer.name}', and report it"
                )
        proofs[layer.name] = Proof(
            str(after.pattern), after.density, int(np.count_nonzero(whole[~zero] == 0))
        )
    return proofs
