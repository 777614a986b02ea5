"""The models of a benchmark: what was named on the command line, and how it is opened."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmcompile.bench.quantised import read_graph
from nmcompile.bench.results import Model
from nmcompile.errors import ModelError, ShapeError

if TYPE_CHECKING:
    from nmcompile.frontends import SourceModel
    from nmcompile.runtime.format import Artifact

Shapes = dict[str, tuple[int, ...]]


class Source(ABC):
    """A model that was named; `name` is unique in the run."""

    name: str
    text: str

    @property
    def file(self) -> Path | None:
        """The ONNX file that it is; None where it is none."""
        return None

    @abstractmethod
    def digest(self) -> str:
        """As in results."""

    @abstractmethod
    def open(self, batch: int | None) -> SourceModel:
        """The folded model for a batch.

        Raises:
            NmcompileError: it cannot be read, or not for this batch.
        """

    def describe(self, macs: int) -> Model:
        """The model's entry in results; macs: of one image."""
        return Model(name=self.name, source=self.text, digest=self.digest(), macs=macs)


@dataclass
class OnnxSource(Source):
    """An ONNX file.

    shapes: of inputs that it leaves open; the batch, their first dimension, may be overruled.
    """

    name: str
    text: str
    path: Path
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The file itself."""
        return self.path

    def digest(self) -> str:
        """Sha256 of the file."""
        return file_digest(self.path)

    def open(self, batch: int | None) -> SourceModel:
        """The folded model; its open batch is `batch`, or 1."""
        from nmcompile.folding import open_folded

        return open_folded(str(self.path), shapes=self.shapes_for(batch))[0]

    def shapes_for(self, batch: int | None) -> Shapes:
        """The shapes to fix, by input.

        Raises:
            ModelError: the file cannot be read.
            ShapeError: the model fixes another batch.
        """
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        for name, declared in self._declared.items():
            if name in shapes:
                if batch is not None and declared and declared[0] is None:
                    shapes[name] = (batch, *shapes[name][1:])
                continue
            if not declared:
                continue
            first = declared[0] or batch or 1
            if declared[0] is None and all(dim is not None for dim in declared[1:]):
                shapes[name] = (first, *(dim or 1 for dim in declared[1:]))
        for name, declared in self._declared.items():
            fixed = declared[0] if declared else None
            if batch is not None and fixed is not None and fixed != batch:
                raise ShapeError(
                    f"{self.text} fixes the batch of its input {name} at {fixed}: expected an open "
                    f"first dimension for batch {batch}; export it with one, or name the torch "
                    "factory instead"
                )
        return shapes

    @cached_property
    def _declared(self) -> dict[str, list[int | None]]:
        """Dimensions by input, None where open; none at all where the rank is unknown."""
        proto = read_graph(self.path)
        constants = {tensor.name for tensor in proto.graph.initializer}
        return {
            value.name: [
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in proto.graph.input
            if value.name not in constants
        }


@dataclass
class TorchSource(Source):
    """What a factory returns.

    make: makes the torch model.
    shapes: of all its inputs; the batch, their first dimension, may be overruled.
    weights: a checkpoint that is loaded into it.
    """

    name: str
    text: str
    make: Callable[[], Any]
    shapes: Mapping[str, Sequence[int]]
    weights: Path | None = None

    def digest(self) -> str:
        """Sha256 of names, shapes and values of its state."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
        return digest.hexdigest()

    def open(self, batch: int | None) -> SourceModel:
        """The folded model, exported for `batch`."""
        from nmcompile.folding import open_folded

        return open_folded(self._model, shapes=self.shapes_for(batch))[0]

    def shapes_for(self, batch: int | None) -> Shapes:
        """The shapes of all inputs."""
        return {
            name: tuple(shape) if batch is None else (batch, *tuple(shape)[1:])
            for name, shape in self.shapes.items()
        }

    @cached_property
    def _model(self) -> Any:
        model = self.make()
        if self.weights is not None:
            from nmcompile.train import load_checkpoint

            load_checkpoint(model, self.weights)
        return model


@dataclass
class ArtifactSource(Source):
    """A compiled model.

    model: the ONNX file that other engines run in its place, None where there is none.
    """

    name: str
    text: str
    path: Path
    model: Path | None = None

    def digest(self) -> str:
        """Sha256 of the file."""
        return file_digest(self.path)

    def open(self, batch: int | None) -> SourceModel:
        """Not for artifacts: there is nothing to fold."""
        raise ModelError(f"{self.text} is compiled already; expected a model that is not")

    @cached_property
    def artifact(self) -> Artifact:
        """The checked file."""
        from nmcompile.runtime import read_artifact

        return read_artifact(self.path)


def file_digest(path: Path) -> str:
    """Sha256 of a file in hex.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; check the path") from error


def unique_names(texts: Sequence[str]) -> list[str]:
    """A short name for every model: file's stem or factory, with a number where that is taken."""
    names: list[str] = []
    for text in texts:
        _, colon, factory = text.rpartition(":")
        stem = factory if colon and not Path(text).exists() else Path(text).stem
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names
