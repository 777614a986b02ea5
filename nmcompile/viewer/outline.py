"""A model as it would be lowered, without machine code: all that an artifact says about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.assembly import assemble
from nmcompile.building import build
from nmcompile.explain import explained
from nmcompile.folding import open_folded
from nmcompile.progress import Progress, Stages, silent
from nmcompile.reports import target_notes
from nmcompile.runtime import Manifest, configure_environment
from nmcompile.segments.whole import check_rest_option, taken
from nmcompile.targets import find_target


@dataclass(frozen=True, eq=False)
class Outline:
    """What `nmc compile` would write, but for the code.

    contents: of the parts that onnxruntime runs, by section.
    weights: of every layer after folding, (O, I, ...); None where one cannot be read.
    notes: what there is to say about folding and lowering, one sentence each.
    """

    manifest: Manifest
    contents: Mapping[str, Any]
    weights: Mapping[str, npt.NDArray[np.generic] | None]
    notes: tuple[str, ...]


@explained
def outline(
    model: Any,
    *,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "avx512",
    rest: str = "onnxruntime",
    progress: Progress = silent,
) -> Outline:
    """Fold and lower a model; arguments as `nmcompile.compile`.

    Raises:
        NmcompileError: as `nmcompile.compile`.
    """
    # Before TVM starts its threads: the pool can shrink later, not grow.
    configure_environment()
    chosen = find_target(target)
    check_rest_option(rest)
    stage = Stages(progress)
    source, folded = open_folded(model, example_inputs, shapes=shapes, progress=stage)
    lower = partial(
        build, target=chosen, precision=None, dense=False, tuning=None, stage=stage, maker=None
    )
    sources, made, why = taken([source], chosen, rest, lower)
    whole, source = assemble(sources, chosen, made, ""), sources[0]
    weights: dict[str, Any] = {other.name: other.weight for other in source.graph.weighted()}
    weights |= {layer.name: layer.weight for layer in source.graph.layers()}
    notes = [f"{note.layer}: {note.text}" for note in folded.notes]
    notes += [*filter(None, [why]), *whole.report.notes, *target_notes(source, chosen)]
    contents = {} if isinstance(whole.library, bytes) else whole.library
    return Outline(whole.manifest, contents, weights, tuple(notes))
