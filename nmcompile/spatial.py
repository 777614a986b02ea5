"""How densities differ between the positions of a convolution's kernel.

N:M gives all of them the same one; unstructured pruning to the same density does not. That is what
SpRe starts from (Zhang et al., TPAMI 2025, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.folding import open_checked
from nmcompile.passes.pipeline import FOLD_PIPELINE, run_pipeline
from nmcompile.progress import Progress, silent
from nmcompile.sparsity import Pattern, Unstructured, parse_wanted, project

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpatialLayer:
    """Densities of one convolution larger than 1x1, arrays of shape (kh, kw).

    main: of its weight, before anything is folded into it.
    unstructured: of what magnitude pruning alone leaves of the stored weight, to the same density;
        None where nothing but the pruned weight is stored.
    folded: of its weight after folding, with SpRe's second branch in it; None where `main` is only
        what a pattern would leave.
    """

    name: str
    density: float
    main: Array
    unstructured: Array | None
    folded: Array | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        arrays = {"main": self.main, "unstructured": self.unstructured, "folded": self.folded}
        lists = {name: None if a is None else a.tolist() for name, a in arrays.items()}
        return {"name": self.name, "density": self.density, **lists}


def spatial_report(
    model: Any,
    *,
    example_inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    pattern: Pattern | str = "auto",
    progress: Progress = silent,
) -> tuple[SpatialLayer, ...]:
    """Densities per kernel position of every convolution larger than 1x1.

    Args:
        model: as for `nmcompile.compile`.
        example_inputs: for torch models.
        shapes: input shapes by name, where an ONNX model leaves them open.
        pattern: "auto" takes weights as they are; with another pattern, dense ones are projected
            first, to see what it would leave.
        progress: told what is going on.

    Raises:
        NmcompileError: the model cannot be read or folded, or the pattern is malformed.
    """
    asked = str(pattern).strip().lower()
    wanted = None if asked == "auto" else parse_wanted(asked)
    source = open_checked(model, example_inputs, shapes=shapes, progress=progress)
    stored = source.graph.stored_weights()
    progress("folding")
    run_pipeline(source.graph, FOLD_PIPELINE[:1])  # weights become constants
    before = {layer.name: layer.weight for layer in source.graph.layers()}
    run_pipeline(source.graph, FOLD_PIPELINE[1:])
    rows = []
    for layer in source.graph.layers():
        main = before.get(layer.name, layer.weight)
        if main.ndim != 4 or main.shape[2:] == (1, 1):
            continue
        kept = float(np.count_nonzero(main)) / main.size
        folded: Array | None = _per_position(layer.weight)
        original = stored.get(layer.name, main)
        if kept == 1.0 and wanted is not None:
            original, main = main, project(main, wanted.pattern, wanted.density)
            kept, folded = float(np.count_nonzero(main)) / main.size, None
        unstructured = None
        # Only a stored weight with more non-zeros says what other pruning would have left.
        if original.shape == main.shape and np.count_nonzero(original) > np.count_nonzero(main):
            unstructured = _per_position(project(original, Unstructured(), kept))
        rows.append(SpatialLayer(layer.name, kept, _per_position(main), unstructured, folded))
    return tuple(rows)


def _per_position(weight: npt.NDArray[Any]) -> Array:
    share: Array = (weight != 0).mean(axis=(0, 1), dtype=np.float64)
    return share
