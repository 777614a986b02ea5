"""The driver: from a float model and calibration data to a model in integers, and what it lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile.explain import explained
from nmcompile.frontends.onnx_export import serialized
from nmcompile.passes.graphs.quantised import QuantisedConstant
from nmcompile.progress import Progress, silent
from nmcompile.quantization.calibration import Calibration, read_calibration
from nmcompile.quantization.choice import leave_worst, named_layers, rank_layers
from nmcompile.quantization.folded import FoldedModel, fold_for_quantization
from nmcompile.quantization.measure import Loss, first_output, layer_ratios, loss_of, ratio
from nmcompile.quantization.proof import Proof, prove, read_integers
from nmcompile.quantization.ranges import find_ranges, require_onnxruntime, write_integers
from nmcompile.quantization.report import LayerLoss, QuantizationReport
from nmcompile.quantization.settings import Quantization
from nmcompile.runtime.files import check_writable, replace_file
from nmcompile.sparsity import detect

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False)
class QuantizeResult:
    """A quantised model.

    model: `onnx.ModelProto` with QuantizeLinear and DequantizeLinear, which any engine reads.
    report: what it lost.
    path: the file that was written, if one was asked for.
    """

    model: onnx.ModelProto
    report: QuantizationReport
    path: Path | None = None


@explained
def quantize(
    model: Any,
    calibration: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    quantization: Quantization | None = None,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = silent,
) -> QuantizeResult:
    """Quantise a trained float32 model to int8, after folding it.

    Weights become int8, symmetric, with a scale per output channel, so that zeros stay zeros and
    patterns stay patterns, which is checked; activations uint8, biases int32. Ranges are those that
    onnxruntime's tools find.

    Args:
        model: as for `nmcompile.compile`.
        calibration: what the model sees in use, a hundred samples or more. For an input
            (N, ...): arrays (samples, ...), (...) or (runs, N, ...), already normalised. A folder
            of images or `.npy` files, or of one subfolder of them per class; a `.npz` or a mapping
            with an array per input, and `labels` (samples,) where they are known; an iterable of
            arrays, of mappings by input, or of sequences in the inputs' order. Every fourth sample
            is held out to measure on, if there are eight.
        output: the ONNX file to write; None for none.
        quantization: what else may be decided.
        example_inputs: for torch models: the inputs whose shapes are quantised for.
        shapes: input shapes by name, where an ONNX model leaves them open.
        progress: told about every stage.

    Raises:
        ModelError: the model cannot be read, is quantised already, or onnxruntime cannot run it.
        InputError: the calibration data is empty, does not fit or is not finite; a layer to keep in
            float32 is none; the largest loss cannot be had; onnxruntime is missing.
        WeightError: a zero of a weight did not stay one.
        PatternError: a pattern did not stay.
        ArtifactError: the output cannot be written.
    """
    settings = quantization or Quantization()
    require_onnxruntime()
    if output is not None:
        check_writable(Path(output))
    folded = fold_for_quantization(model, example_inputs, shapes=shapes, progress=progress)
    keep = named_layers(folded, settings.keep_float)
    progress("reading the calibration data")
    data = read_calibration(calibration, folded.inputs, settings.samples, settings.normalisation)
    shown, measured = data.split()
    ranges = find_ranges(folded, shown, settings.statistics, progress)
    progress("running the float model")
    expected = first_output(folded.proto, measured, folded.title)

    def loss_without(leave: frozenset[str]) -> Loss:
        quantised = write_integers(folded, ranges, leave=leave)
        found = first_output(quantised, measured, folded.title)
        return loss_of(found, expected, measured.labels)

    alone: dict[str, float] = {}
    if settings.rank or settings.max_loss is not None:
        alone = rank_layers(folded, ranges, measured, progress)
    if settings.max_loss is not None:
        ranked = sorted((name for name in alone if name not in keep), key=lambda n: alone[n])
        keep |= leave_worst(
            ranked, settings.max_loss, lambda worst: loss_without(keep | worst), progress
        )
    progress("quantising")
    quantised = write_integers(folded, ranges, leave=keep)
    integers = read_integers(quantised)
    proofs = prove(folded, integers, keep)
    progress("measuring what is lost")
    layers = _layers(folded, quantised, integers, proofs, measured, alone)
    found = first_output(quantised, measured, folded.title)
    report = QuantizationReport(
        title=folded.title,
        statistics=settings.statistics,
        calibrated=len(shown),
        measured=len(measured),
        held_out=shown is not measured,
        loss=loss_of(found, expected, measured.labels),
        layers=layers,
    )
    if output is None:
        return QuantizeResult(quantised, report)
    progress("writing the model")
    replace_file(Path(output), [serialized(quantised, folded.title)])
    return QuantizeResult(quantised, report, Path(output))


def _layers(
    folded: FoldedModel,
    quantised: onnx.ModelProto,
    integers: Mapping[str, QuantisedConstant],
    proofs: Mapping[str, Proof],
    data: Calibration,
    alone: Mapping[str, float],
) -> tuple[LayerLoss, ...]:
    outputs = layer_ratios(folded, quantised, data)
    rows = []
    for layer in folded.layers:
        proof, ranked = proofs.get(layer.name), alone.get(layer.name)
        if proof is None:
            held = detect(layer.weight)
            pattern, density = str(held.pattern), held.density
            row = LayerLoss(layer.name, layer.op, "float32", pattern, density)
        else:
            row = LayerLoss(
                *(layer.name, layer.op, "int8", proof.pattern, proof.density, proof.rounded),
                weight_db=ratio(layer.weight, integers[layer.name].real),
            )
        rows.append(replace(row, output_db=outputs.get(layer.name), alone_db=ranked))
    return tuple(rows)
