"""The driver: from a float model and calibration data to a model in integers, and what it lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile.errors import ModelError
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
from nmcompile.wording import spell_shapes

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
    if output is not None:
        check_writable(Path(output))
    (quantised,), report = quantize_sets(
        model,
        calibration,
        [shapes],
        quantization=quantization,
        example_inputs=example_inputs,
        progress=progress,
    )
    if output is None:
        return QuantizeResult(quantised, report)
    progress("writing the model")
    replace_file(Path(output), [serialized(quantised, report.title)])
    return QuantizeResult(quantised, report, Path(output))


def quantize_sets(
    model: Any,
    calibration: Any,
    sets: Sequence[Mapping[str, Sequence[int]] | None],
    *,
    quantization: Quantization | None = None,
    example_inputs: Any = None,
    progress: Progress = silent,
) -> tuple[list[onnx.ModelProto], QuantizationReport]:
    """As `quantize`, for several sets of input shapes: to the same integers, by the same ranges.

    Args:
        model: as for `quantize`.
        calibration: as for `quantize`, for the first of the sets.
        sets: shapes of the inputs.
        quantization: as for `quantize`.
        example_inputs: as for `quantize`.
        progress: told about every stage.

    Returns:
        A model for each set, and what the first one lost.

    Raises:
        ModelError: the model has other operators for one of the sets than for the first.
        NmcompileError: as `quantize`.
    """
    settings = quantization or Quantization()
    require_onnxruntime()
    folded, *others = (
        fold_for_quantization(model, example_inputs, shapes=shapes, progress=progress)
        for shapes in sets
    )
    for other in others:
        _check_alike(folded, other)
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
    quantised, *rest = (write_integers(each, ranges, leave=keep) for each in (folded, *others))
    integers = read_integers(quantised)
    proofs = prove(folded, integers, keep)
    for each, written in zip(others, rest, strict=True):
        prove(each, read_integers(written), keep)
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
    return [quantised, *rest], report


def _check_alike(first: FoldedModel, other: FoldedModel) -> None:
    """Make sure that what is known of the tensors of a model holds for another of its shapes.

    Raises:
        ModelError: they have other operators, or tensors of other names.
    """
    here, there = (
        spell_shapes({name: dims for name, dims, _ in model.inputs}) for model in (first, other)
    )
    for node, found in zip_longest(first.proto.graph.node, other.proto.graph.node):
        if _spell(node) != _spell(found):
            raise ModelError(
                f"{first.title} is another model for {there} than for {here}, whose ranges it "
                f"would have: expected the same operators, found {_spell(found)} in place of "
                f"{_spell(node)}; compile one artifact for each shape"
            )


def _spell(node: onnx.NodeProto | None) -> str:
    if node is None:
        return "nothing"
    return f"{node.op_type} {node.name} of {', '.join(node.input)} to {', '.join(node.output)}"


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
