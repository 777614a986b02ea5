"""What onnxruntime's tools do: find the ranges of activations, and write integers for them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from nmcompile.errors import InputError, ModelError, NmcompileError
from nmcompile.explain import machine_reason
from nmcompile.progress import Progress
from nmcompile.quantization.calibration import Calibration
from nmcompile.quantization.folded import PRODUCTS, FoldedModel, outputs_first
from nmcompile.quantization.outputs import final_nodes, leave_outputs, read_real
from nmcompile.quantization.regions import biases, curves, float_regions, transformer_regions
from nmcompile.runtime.files import scratch_folder
from nmcompile.wording import way

OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Sum", "Mul", "Concat", "Split", "Slice"),
    *("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Pad"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)
"""What reads and writes 8 bits. Normalisations, softmax and all else stay in float32."""

INSTALL = "pip install 'nmcompile[quantize]'"


def require_onnxruntime() -> None:
    """Make sure that onnxruntime is there.

    Raises:
        InputError: it is not.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"quantising needs onnxruntime, which is not installed or not whole ({error}): "
            f"{INSTALL}"
        ) from error


def find_ranges(
    model: FoldedModel, calibration: Calibration, statistics: str, progress: Progress
) -> Any:
    """Run the model on the calibration data; `onnxruntime.quantization.TensorsData`.

    Raises:
        ModelError: onnxruntime cannot run the model, or a tensor of it is not finite.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    stage, total = "calibrating", len(calibration)
    with scratch_folder() as folder, _hushed():
        path = folder / "model.onnx"
        path.write_bytes(model.proto.SerializeToString())
        try:
            calibrator = create_calibrator(
                path,
                list(OPERATORS),
                augmented_model_path=str(folder / "augmented.onnx"),
                calibrate_method=methods[statistics],
            )
            done = 0
            progress(stage, done, total)
            for inputs, count in calibration.batches():
                # One at a time: it keeps all activations of what it gets at once.
                calibrator.collect_data(_Once(inputs))
                done += count
                progress(stage, done, total)
            ranges = calibrator.compute_data()
        except Exception as error:
            raise _not_run(model, error) from error
    for name, found in sorted(ranges.items(), key=lambda item: item[0]):
        if not np.isfinite(found.range_value).all():
            raise ModelError(
                f"{model.title}: the tensor {name} is infinite or not a number on the calibration "
                "data; check the data and the weights: float32 has to represent all of it"
            )
    return ranges


def write_integers(
    model: FoldedModel,
    ranges: Any,
    *,
    only: Sequence[str] = (),
    leave: Collection[str] = (),
) -> onnx.ModelProto:
    """The model with QuantizeLinear and DequantizeLinear around what reads and writes 8 bits.

    Weights are int8, symmetric, a scale per output channel; activations uint8 with a zero point,
    of the full range; biases int32. Outputs are real numbers.

    Args:
        model: the float model.
        ranges: of `find_ranges`.
        only: names of the only nodes to quantise; all where there is none.
        leave: names of nodes to leave in float32.

    Raises:
        ModelError: onnxruntime's tools fail.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType

    copied = onnx.ModelProto()
    copied.CopyFrom(model.proto)
    final = final_nodes(copied)
    real = _real_numbers(copied, model, final)
    layers = {layer.name for layer in model.layers} - set(leave)
    others = {*model.others, *leave, *final, *real}
    others |= float_regions(copied, set(OPERATORS) - set(PRODUCTS), layers)
    with _hushed():
        try:
            quantizer = QDQQuantizer(
                copied,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=list(only),
                nodes_to_exclude=sorted(others),
                op_types_to_quantize=list(OPERATORS),
                extra_options={
                    "WeightSymmetric": True,
                    "ActivationSymmetric": False,
                    "TensorQuantOverrides": _ranges_of_zeros(copied),
                },
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            read_real(quantizer.model.model, real)
            leave_outputs(quantizer.model.model, final)
        except Exception as error:
            raise machine_reason(error) or ModelError(
                f"{model.title}: onnxruntime's tools cannot quantise it: "
                f"{type(error).__name__}: {error}; leave the layers concerned in float32 with "
                f"{way('--keep-float', 'Quantization(keep_float=[...])')}"
            ) from error
    written: onnx.ModelProto = quantizer.model.model
    return written


def _real_numbers(
    proto: onnx.ModelProto, model: FoldedModel, final: Collection[str]
) -> frozenset[str]:
    """Names of the nodes around layers that compute on real numbers whatever is quantised."""
    layers = {layer.name for layer in model.layers}
    added = biases(proto, layers)
    whole = layers | added
    products = [n.name for n in proto.graph.node if n.name in model.others and n.op_type != "Conv"]
    return added | curves(proto, whole) | transformer_regions(proto, whole | {*final}, products)


def _ranges_of_zeros(proto: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """The ranges of weights that have filters of zeros only.

    These would get the scale 1, in whose steps their bias would be rounded; they get that of the
    layer's extremes.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        stored = constants.get(node.input[1]) if node.op_type in PRODUCTS else None
        if stored is None:
            continue
        weight, axis = numpy_helper.to_array(stored), 0 if outputs_first(node) else 1
        if weight.ndim < 2:
            continue
        filters = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        if not weight.any() or filters.any(1).all():
            continue
        ranges = [(row if row.any() else weight) for row in filters]
        found[stored.name] = [
            {"axis": axis, "rmin": values.min(), "rmax": values.max()} for values in ranges
        ]
    return found


class _Once:
    """A data reader of one batch."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs

    def get_next(self) -> Any:
        inputs, self._inputs = self._inputs, None
        return inputs


def _not_run(model: FoldedModel, error: Exception) -> NmcompileError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return machine_reason(error) or ModelError(
        f"{model.title}: onnxruntime cannot run the folded model to calibrate it: {lines[0]}; "
        "check that it runs there before"
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what the tools log about steps that folding has done already."""
    logger = logging.getLogger()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
