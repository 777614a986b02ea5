"""Zeros of the weights are zeros of the integers, and the integers hold the pattern."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from nmcompile.errors import PatternError, WeightError
from nmcompile.folding import open_checked
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.quantization.folded import FoldedModel
from nmcompile.sparsity import Dense, Unstructured, check, detect
from nmcompile.wording import way


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


def read_integers(quantised: onnx.ModelProto) -> dict[str, QuantisedConstant]:
    """What the compiler reads as the integers of layers, by node; others are in float32."""
    ops = open_checked(quantised).graph.ops()
    return {str(op.handle.name): op.integers for op in ops if op.integers is not None}


def prove(
    model: FoldedModel, integers: dict[str, QuantisedConstant], leave: Collection[str]
) -> dict[str, Proof]:
    """Check what a sparse kernel relies on, layer by layer.

    Args:
        model: the float model.
        integers: of the quantised one.
        leave: names of the layers that were to stay in float32.

    Raises:
        WeightError: a weight that was zero is none, or a layer was not quantised to symmetric int8.
        PatternError: the integers do not hold the pattern that the float weights had.
    """
    proofs = {}
    for layer in model.layers:
        if layer.name in leave:
            continue
        if layer.name not in integers:
            raise WeightError(
                f"layer {layer.name}: expected int8 weights, found float32: onnxruntime's tools "
                f"left it alone; say so with {_keep(layer.name)}"
            )
        stored = integers[layer.name]
        if stored.values.dtype != np.int8 or stored.zero.any():
            raise WeightError(
                f"layer {layer.name}: expected symmetric int8 weights, found "
                f"{stored.values.dtype} with the zero point {stored.zero.max()}; update onnxruntime"
            )
        whole = stored.values
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
                f"{_keep(layer.name)}, and report it"
            )
        before, after = detect(layer.weight), detect(whole)
        if not isinstance(before.pattern, Dense | Unstructured):
            broken = check(whole, before.pattern)
            if broken.violations:
                raise PatternError(
                    f"layer {layer.name}: the integers break the pattern {before.pattern} of the "
                    f"float weights {broken.violations} times, first at {broken.first}; leave the "
                    f"layer in float32 with {_keep(layer.name)}, and report it"
                )
        proofs[layer.name] = Proof(
            str(after.pattern), after.density, int(np.count_nonzero(whole[~zero] == 0))
        )
    return proofs


def _keep(name: str) -> str:
    """How to leave a layer in float32."""
    return way(f"--keep-float '{name}'", f"Quantization(keep_float=[{name!r}])")
