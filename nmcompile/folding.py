"""What every use of a model begins with: read it, fold it, and make sure that it makes sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nmcompile.frontends import SourceModel, open_model
from nmcompile.passes.checks.geometry import check_geometry
from nmcompile.passes.checks.sizes import check_inputs
from nmcompile.passes.checks.weights import check_weights
from nmcompile.passes.graphs.interface import Note, PassResult
from nmcompile.passes.pipeline import run_pipeline
from nmcompile.passes.remove_zero_channels import RemoveZeroChannels
from nmcompile.progress import Progress, silent


def open_checked(
    model: Any,
    example_inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = silent,
) -> SourceModel:
    """Read a model and check it; arguments as `nmcompile.compile`.

    Raises:
        ModelError: the model cannot be read, a weight is no number, or a convolution is impossible.
    """
    progress("reading the model")
    source = open_model(model, example_inputs=example_inputs, shapes=shapes)
    check_inputs(source.inputs)
    check_weights(source.graph)
    check_geometry(source.graph)
    return source


def open_folded(
    model: Any,
    example_inputs: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = silent,
    smaller: bool = True,
) -> tuple[SourceModel, PassResult]:
    """Read a model, fold it, and check it before and after; arguments as `nmcompile.compile`.

    With `smaller`, channels that the model can do without are taken out (`without_zero_channels`).

    Raises:
        ModelError: as `open_checked`.
    """
    source = open_checked(model, example_inputs, shapes=shapes, progress=progress)
    progress("folding")
    folded = run_pipeline(source.graph)
    check_weights(source.graph)
    check_geometry(source.graph)
    if not smaller:
        return source, folded
    source, notes = without_zero_channels(source)
    return source, replace(folded, notes=(*folded.notes, *notes))


def without_zero_channels(source: SourceModel) -> tuple[SourceModel, tuple[Note, ...]]:
    """Take the channels out of a folded model that it can do without; with what there is to say."""
    done = RemoveZeroChannels().call(source.graph)
    return replace(source, model_shapes={**done.shapes, **source.model_shapes}), done.notes
