"""What an artifact says of the code in it, for other weights of the same model.

Which kernel a layer has, with which tile sizes, depends on the weights: on the pattern that they
hold, and on how many are not zero. Here the kernels are those that the artifact's code was
generated for, and weights that they cannot read are refused by name. Names of functions say what
they were generated from (`passes.lowering.naming`), so a program that is in the library of an
artifact, instructions, names and constants, is what that library was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import ModelError, PatternError, ShapeError
from nmcompile.kernels.catalog import Choice, OpKind, find_row, rows_for
from nmcompile.kernels.problem import Problem
from nmcompile.passes.graphs.interface import Graph
from nmcompile.passes.lowering.kernels import Chooser
from nmcompile.passes.lowering.library import Program
from nmcompile.passes.lowering.naming import content_name
from nmcompile.runtime.format import Artifact
from nmcompile.runtime.steps import LIBRARY
from nmcompile.sparsity import Dense, Detection, check, detect, parse_pattern
from nmcompile.targets import BF16

ANEW = "compile the model anew (nmc compile)"
MOST_CONFIGS = 24  # of each kernel, the best first; weights are packed to see whether one fits


class RecordedCode:
    """Chooses the kernels of an artifact, and gives its libraries to programs that are theirs."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self._path = artifact.path
        self._rows = {row["name"]: row for row in manifest.layers}
        self._symbols = {call.symbol for form in manifest.forms for call in form.calls}
        self._params = {spec.name: spec.shape for spec in manifest.params}
        self._whole = not manifest.needs_onnxruntime
        self._libraries = [
            bytes(artifact.parts[section])
            for section, step in manifest.by_section.items()
            if step.kind == LIBRARY
        ]
        self._packed: Mapping[str, npt.NDArray[Any]] = {}
        self._owners: Sequence[Sequence[str]] = ()
        self._missing: list[str] = []

    @property
    def precision(self) -> str | None:
        """As in `nmcompile.compile`, where layers are multiplied in another than the model's."""
        rows = [find_row(symbol) for symbol in self._symbols]
        return BF16 if any(row is not None and row.dtype == "bfloat16" for row in rows) else None

    @property
    def smaller(self) -> bool:
        """Whether channels were taken out that the model could do without."""
        return any(row["model_shape"] for row in self._rows.values())

    def check_layers(self, graph: Graph) -> None:
        """Refuse a model whose layers have other shapes.

        Raises:
            ShapeError: a weight has another shape.
        """
        known: list[Any] = [*graph.layers(), *graph.weighted()]
        shapes = {layer.name: getattr(layer.weight, "shape", ()) for layer in known}
        for name, row in self._rows.items():
            wanted = tuple(row["shape"])
            if name not in shapes:
                self._missing.append(name)
            elif wanted != shapes[name]:
                taken = " without channels that are zero" if row["model_shape"] else ""
                raise ShapeError(
                    f"layer {name}: expected a weight of shape {wanted}{taken} as in {self._path}, "
                    f"found {shapes[name]}: {ANEW}"
                )

    def detect(self, name: str, weight: npt.NDArray[Any]) -> Detection:
        """The pattern that the layer was compiled with.

        Raises:
            PatternError: the weight does not hold it.
        """
        found = detect(weight)
        row = self._rows.get(name)
        if row is not None and row["pattern"] == str(Dense()) and not row["also"]:
            # Every weight holds "unstructured" too: here all zeros were to be ignored.
            return Detection(Dense(), (Dense(),), found.density)
        if row is None or (row["pattern"], row["scattered"]) == (
            str(found.pattern),
            found.order is not None,
        ):
            return found
        wanted = parse_pattern(row["pattern"])
        if wanted in found.holds and not row["scattered"] and check(weight, wanted).ok:
            return Detection(wanted, found.holds, found.density)
        scattered = " of scattered filters" if row["scattered"] else ""
        raise PatternError(
            f"layer {name}: expected a weight that holds {wanted}{scattered}, which {self._path} "
            f"was compiled for, found {found.pattern} with {found.density:.1%} of it not zero: "
            f"prune it alike, or {ANEW}"
        )

    def chooser(self, prefer: Chooser) -> Chooser:
        """Decides on the kernels and tile sizes that the artifact has, if it can on favourites."""

        def choose(op: OpKind, target: str, problem: Problem) -> Choice:
            favourite = prefer(op, target, problem)
            for choice in (favourite, *_others(op, target, problem)):
                if self._has(choice, problem):
                    return choice
            return favourite

        return choose

    def _has(self, choice: Choice, problem: Problem) -> bool:
        name = choice.kernel.name
        if not any(symbol.startswith(name) for symbol in self._symbols):
            return False
        adds = (problem.integers or problem.epilogue).residual
        for written in (problem, problem.in_place()) if adds else (problem,):
            made_by = choice.kernel.lower(written, choice.config).made_by
            if content_name(name, made_by) in self._symbols:
                return True
        return False

    def note_params(
        self, params: Mapping[str, npt.NDArray[Any]], owners: Sequence[Sequence[str]]
    ) -> None:
        """Be told the packed weights of the program that is made next.

        Args:
            params: by name, as `join_variants` gives them.
            owners: the layer of each call, for each shape.
        """
        self._packed, self._owners = params, owners

    def make(self, program: Program, progress: Any) -> bytes:
        """The library that the program is in.

        Raises:
            PatternError: weights are packed in other sizes than the artifact's.
            ModelError: it computes something else.
        """
        content = program.content
        for library in self._libraries:
            if content in library:
                return library
        found = "other operators, numbers in them or small constants"
        if self._missing:
            found = f"no layer {self._missing[0]}"
        elif self._whole:
            self._refuse_sizes()
        raise ModelError(
            f"the new model is not the one that {self._path} was compiled from: expected one that "
            f"differs in the weights of its layers alone, found {found}: {ANEW}"
        )

    def _refuse_sizes(self) -> None:
        for name, array in self._packed.items():
            wanted = self._params.get(name)
            if wanted == np.shape(array):
                continue
            size = "none" if wanted is None else f"{wanted}"
            raise PatternError(
                f"layer {self._owner(name)}: expected packed weights ({name}) of shape {size} as "
                f"in {self._path}, found {np.shape(array)}: other weights of it are zero, or equal "
                f"to those of another layer: {ANEW}"
            )

    def _owner(self, name: str) -> str:
        """The layer of a packed weight."""
        shape, slash, own = name.rpartition("/")
        call = own.partition(".")[0]
        if not call.isdecimal() or (slash and not shape.isdecimal()):
            return name
        return self._owners[int(shape or 0)][int(call)]


def _others(op: OpKind, target: str, problem: Problem) -> Iterator[Choice]:
    """Whatever kernels can compute a problem."""
    for kernel in rows_for(op, target, problem.dtype):
        if kernel.refuse(problem) is None:
            candidates = kernel.configs(problem)
            configs = [candidate.config for candidate in candidates[:MOST_CONFIGS]] or [None]
            yield from (Choice(kernel, {}, config) for config in configs)
