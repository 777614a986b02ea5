"""How far a quantised model's outputs and layers are from the float model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from nmcompile.errors import InputError, ModelError
from nmcompile.explain import machine_reason
from nmcompile.quantization.calibration import Calibration
from nmcompile.quantization.folded import PRODUCTS, FoldedModel
from nmcompile.quantization.settings import MaxLoss
from nmcompile.runtime.files import scratch_folder

Array = npt.NDArray[Any]

RUNS = 4
"""Runs whose activations are compared: all of those of a network are in memory at once."""

_QUANTISED_INPUT = "_QuantizeLinear_Input"  # what the tools append to the name of a graph output


@dataclass(frozen=True)
class Loss:
    """What the first output loses.

    decibels: signal to quantisation noise.
    same_top1: share of the samples whose top class is the float model's; None where the output has
        no classes. top1, top1_float: share that is right, where there are labels.
    """

    decibels: float
    same_top1: float | None = None
    top1: float | None = None
    top1_float: float | None = None

    def within(self, most: MaxLoss) -> bool:
        """Whether it is not more than what is allowed.

        Raises:
            InputError: top classes are to be compared, and there are none.
        """
        if most.percent is None:
            return self.decibels >= (most.decibels or 0.0)
        if self.same_top1 is None:
            raise InputError(
                "the largest loss is one of top classes: expected a model whose first output is "
                "(samples, classes), found none; say the signal-to-noise ratio instead, 30dB"
            )
        return 100 * (1 - self.same_top1) <= most.percent


def first_output(proto: onnx.ModelProto, data: Calibration, title: str) -> Array:
    """The first output for all samples, (samples, ...).

    Integers are not fused into operators: those of CPUs without VNNI saturate.

    Raises:
        ModelError: onnxruntime cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    # Threads that wait in a loop take the time of whatever else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    rows = []
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_outputs()[0].name
        for inputs, count in data.batches():
            (found,) = session.run([name], inputs)
            batched = data.batch and found.ndim and len(found) == data.batch
            rows.append(found[:count] if batched else found[None] if not found.ndim else found)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise machine_reason(error) or ModelError(
            f"{title}: onnxruntime cannot run it: {lines[0]}; check that it runs there before"
        ) from error
    return np.concatenate(rows)


def loss_of(found: Array, expected: Array, labels: Array | None) -> Loss:
    """Compare the first outputs.

    Raises:
        InputError: the labels are no classes of the model.
    """
    decibels = ratio(expected, found)
    if expected.ndim < 2 or expected.shape[1] < 2:
        return Loss(decibels)
    tops, wanted = found.argmax(1), expected.argmax(1)
    same = float((tops == wanted).mean())
    if labels is None:
        return Loss(decibels, same)
    classes = expected.shape[1]
    if expected.ndim != 2 or len(labels) != len(expected):
        raise InputError(
            f"the calibration data has labels: expected a first output of {len(labels)} x classes, "
            f"found {expected.shape}; leave the labels out"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"the labels of the calibration data: expected 0 to {classes - 1}, the model's "
            f"classes, found {labels.min()} to {labels.max()}; number them as in training"
        )
    return Loss(decibels, same, float((tops == labels).mean()), float((wanted == labels).mean()))


def ratio(expected: Array, found: Array) -> float:
    """Signal to quantisation noise in dB, as onnxruntime's tools define it."""
    from onnxruntime.quantization import qdq_loss_debug

    both = (np.asarray(array, np.float64) for array in (expected, found))
    return float(qdq_loss_debug.compute_signal_to_quantization_noice_ratio(*both))


def layer_ratios(
    model: FoldedModel, quantised: onnx.ModelProto, data: Calibration
) -> dict[str, float]:
    """Signal to noise in dB behind every layer, in the quantised model.

    What the layers before have lost is in it, and the rounding of the output where it is quantised.
    """
    from onnxruntime.quantization import qdq_loss_debug as debug

    few = data.take(np.arange(min(len(data), RUNS * max(data.batch, 1))))
    with scratch_folder() as folder:
        kinds = ["QuantizeLinear", "DequantizeLinear", *PRODUCTS]
        integers = _activations(folder, "int8", quantised, few, kinds)
        floats = _activations(folder, "float", model.proto, few, None)
    matched = debug.create_activation_matching(integers, floats)
    errors = debug.compute_activation_error(
        {name: match for name, match in matched.items() if "float" in match}
    )
    written = {node.name: node.output[0] for node in quantised.graph.node if node.output}
    tensors = {
        layer.name: written.get(layer.name, "").removesuffix(_QUANTISED_INPUT)
        for layer in model.layers
    }
    found = {
        name: float(errors[tensor]["xmodel_err"])
        for name, tensor in tensors.items()
        if tensor in errors
    }
    real = {name: tensor for name, tensor in tensors.items() if name not in found}
    for name, tensor in real.items():
        if tensor in integers and tensor in floats:
            found[name] = ratio(np.concatenate(floats[tensor]), np.concatenate(integers[tensor]))
    return found


def _activations(
    folder: Path, name: str, proto: onnx.ModelProto, data: Calibration, kinds: list[str] | None
) -> dict[str, list[Array]]:
    from onnxruntime.quantization import qdq_loss_debug as debug

    path, augmented = folder / f"{name}.onnx", folder / f"{name}-all.onnx"
    path.write_bytes(proto.SerializeToString())
    debug.modify_model_output_intermediate_tensors(path, augmented, kinds)
    found: dict[str, list[Array]] = debug.collect_activations(
        str(augmented), [inputs for inputs, _ in data.batches()]
    )
    return found
