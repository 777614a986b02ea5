"""A model with the weights of one pattern, in every form that an engine takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nmcompile.bench.engines.table import INT8, EngineRow
from nmcompile.bench.forms import BFLOAT16, dtype_of, precision_of, target_of
from nmcompile.bench.matrix import PatternSpec
from nmcompile.bench.quantised import Calibrate, is_quantised, quantise_file, read_graph
from nmcompile.bench.results import Artifact
from nmcompile.bench.samples import random_samples
from nmcompile.bench.sources import ArtifactSource, file_digest
from nmcompile.errors import DeclinedError, InputError, NmcompileError
from nmcompile.frontends.onnx_export import arguments, onnx_bytes
from nmcompile.passes.enforce_pattern import EnforcePattern
from nmcompile.passes.graphs.interface import Graph
from nmcompile.progress import Progress, silent
from nmcompile.sparsity import Dense, Pruning, detect
from nmcompile.targets import find_target

if TYPE_CHECKING:
    from nmcompile.frontends import SourceModel

InputSpec = tuple[str, tuple[int, ...], str]
"""Name, shape and numpy dtype name."""


@dataclass(frozen=True)
class Compiled:
    """An artifact on disk, and what results say about it; dtype: that it computes in."""

    path: Path
    facts: Artifact
    target: str
    dtype: str


class Variant:
    """Weights of one pattern.

    Attributes:
        inputs: in the model's order.
        density: share of weights kept in the layers that are pruned, 1 for dense.
        macs: dense multiply-accumulates of the whole batch.
    """

    inputs: Sequence[InputSpec]
    density: float
    macs: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs."""
        return {name: shape for name, shape, _ in self.inputs}

    @property
    def batch(self) -> int:
        """First dimension of the first input."""
        return self.inputs[0][1][0] if self.inputs and self.inputs[0][1] else 1

    def form_of(self, row: EngineRow, target: str, progress: Progress = silent) -> Any:
        """The model as an engine loads it.

        Raises:
            NmcompileError: there is no such form of it.
        """
        if row.form == "artifact":
            return self.compiled(target, progress).path
        if row.dtype == INT8:
            return self.quantised(progress)
        if self.came_quantised:
            raise DeclinedError(
                f"{row.name} is measured on float32 models, this one is quantised; measure "
                "onnxruntime-int8 or openvino-int8"
            )
        return self.onnx if row.form == "onnx" else self.module

    def runs_integers(self, row: EngineRow, target: str) -> bool:
        """Whether it is the quantised model that an engine is to agree with."""
        return self.came_quantised

    @property
    def came_quantised(self) -> bool:
        """Whether the model was quantised before it came here."""
        raise NotImplementedError

    def quantised(self, progress: Progress = silent) -> Path:
        """The quantised model, an ONNX file, made at the first call where it did not come so."""
        raise NotImplementedError

    def compiled(self, target: str, progress: Progress = silent) -> Compiled:
        """The artifact for a target, compiled at the first call."""
        raise NotImplementedError

    @property
    def onnx(self) -> Path:
        """An ONNX file."""
        raise NotImplementedError

    @property
    def module(self) -> Any:
        """A torch module."""
        raise NotImplementedError


class FoldedVariant(Variant):
    """Made from a folded model; files go to `folder`, made when they are asked for."""

    def __init__(
        self,
        source: SourceModel,
        spec: PatternSpec,
        folder: Path,
        calibrate: Calibrate | None = None,
        file: Path | None = None,
    ) -> None:
        """Project a copy of the weights.

        Args:
            source: the model, which stays as it is.
            spec: what is asked of its weights.
            folder: for files.
            calibrate: gives what quantised forms are calibrated with; by default random inputs.
            file: that the model was read from.

        Raises:
            PatternError: the pattern cannot be had.
        """
        self._kind, self._spec, self._folder = source.kind, spec, folder
        self._calibrate = calibrate or (lambda: random_samples(self.inputs, self.batch).batches)
        self._file = file
        self._quantised: Path | NmcompileError | None = None
        self._source = replace(source, graph=source.graph.copy())
        self.inputs, self.outputs = source.inputs, source.outputs
        self._compiled: dict[str, Compiled] = {}
        self._graph = self._source.graph
        self.macs = sum(layer.macs or 0 for layer in self._graph.layers())
        if spec.changes_weights and spec.pattern is not None:
            done = EnforcePattern(spec.pattern, Pruning(density=spec.density)).call(self._graph)
            pruned = {row.layer for row in done.layers if row.skipped is None}
            self.density = _density(self._graph, pruned)
        elif spec.pattern is not None:
            self.density = 1.0
        else:
            layers = self._graph.layers()
            sparse = {n.name for n in layers if not isinstance(detect(n.weight).pattern, Dense)}
            self.density = _density(self._graph, sparse)

    @cached_property
    def _native(self) -> Any:
        return self._graph.native()

    @property
    def _stem(self) -> str:
        return self._spec.text.replace(":", "of") or "as-is"

    @property
    def module(self) -> Any:
        """The folded torch module.

        Raises:
            DeclinedError: the model came as ONNX.
        """
        if self._kind != "torch":
            raise DeclinedError(
                "torch runs torch models, this one is ONNX; name its factory, "
                "package.module:factory, instead of the file"
            )
        return self._native

    @cached_property
    def onnx(self) -> Path:
        """The folded model in a file."""
        path = self._folder / f"{self._stem}.onnx"
        path.write_bytes(onnx_bytes(self._source))
        return path

    @cached_property
    def came_quantised(self) -> bool:
        """Whether the model was quantised before it came here."""
        return self._kind == "onnx" and is_quantised(self._native)

    def runs_integers(self, row: EngineRow, target: str) -> bool:
        """Whether it is the quantised model that an engine is to agree with."""
        integers = bool(target) and dtype_of(target) == INT8
        return self.came_quantised or integers or row.dtype == INT8

    def quantised(self, progress: Progress = silent) -> Path:
        """The quantised model; the file that was named, where that is it.

        Raises:
            NmcompileError: it cannot be quantised, every time in the same way.
        """
        if self.came_quantised:
            return self.onnx if self._file is None or self._spec.changes_weights else self._file
        if self._quantised is None:
            path = self._folder / f"{self._stem}-int8.onnx"
            try:
                quantise_file(self.onnx, self._source.title, path, self._calibrate, progress)
                self._quantised = path
            except NmcompileError as error:
                self._quantised = error
        if isinstance(self._quantised, NmcompileError):
            raise self._quantised
        return self._quantised

    def compiled(self, target: str, progress: Progress = silent) -> Compiled:
        """The artifact for a target; where that computes on integers, of the quantised model."""
        if target not in self._compiled:
            self._compiled[target] = self._compile(target, progress)
        return self._compiled[target]

    def _compile(self, target: str, progress: Progress) -> Compiled:
        import onnx

        from nmcompile.compiler import compile

        path = self._folder / f"{self._stem}-{target.replace(':', '-')}.nmc"
        row, dtype = target_of(target), dtype_of(target)
        model, more = self._native, self._examples()
        if dtype == INT8 and not self.came_quantised:
            model, more = onnx.load(self.quantised(progress)), {}
        begin = time.perf_counter()
        result = compile(
            model,
            output=path,
            target=row.name,
            precision=precision_of(target),
            **more,
            pattern="dense" if isinstance(self._spec.pattern, Dense) else "auto",
            progress=progress,
        )
        seconds = time.perf_counter() - begin
        dense = sum(4 * math.prod(layer.shape) for layer in result.report.layers)
        return Compiled(path, artifact_facts(path, dense, seconds), row.name, dtype)

    def _examples(self) -> dict[str, Any]:
        """What the driver has to know about the inputs."""
        if self._kind == "onnx":
            return {"shapes": self.shapes}
        args, kwargs = arguments(self._native, _zeros(self.inputs))
        return {"example_inputs": kwargs or args}


class ArtifactVariant(Variant):
    """A compiled model, and the ONNX file that others run in its place."""

    def __init__(self, source: ArtifactSource) -> None:
        """Read the manifest.

        Raises:
            ArtifactError: it is no artifact.
        """
        manifest = source.artifact.manifest
        self._source = source
        self.inputs = [(spec.name, spec.shape, spec.dtype) for spec in manifest.inputs]
        self.macs = sum(layer.get("macs", 0) for layer in manifest.layers)
        sizes = [(math.prod(n.get("shape", ())), n.get("density", 1.0)) for n in manifest.layers]
        pruned = [(size, density) for size, density in sizes if density < 1.0]
        total = sum(size for size, _ in pruned)
        self.density = sum(size * density for size, density in pruned) / total if total else 1.0
        self._dense_nbytes = sum(4 * size for size, _ in sizes)

    @cached_property
    def _facts(self) -> Artifact:
        return artifact_facts(self._source.path, self._dense_nbytes, 0.0)

    def compiled(self, target: str, progress: Progress = silent) -> Compiled:
        """The file, whatever the target; it took no time to compile here."""
        kind = self._source.artifact.manifest.target.kind
        return Compiled(self._source.path, self._facts, kind, self._dtype)

    @cached_property
    def _dtype(self) -> str:
        """On a target for both, that of its layers' kernels."""
        from nmcompile.kernels.catalog import find_row

        manifest = self._source.artifact.manifest
        rows = [find_row(call.symbol) for call in manifest.calls]
        for dtype in (INT8, BFLOAT16):
            if any(row is not None and row.dtype == dtype for row in rows):
                return dtype
        return find_target(manifest.target.kind).dtype

    @cached_property
    def came_quantised(self) -> bool:
        """Whether the model that others run is quantised."""
        return self._source.model is not None and is_quantised(read_graph(self._source.model))

    def quantised(self, progress: Progress = silent) -> Path:
        """What others run.

        Raises:
            InputError: it is not quantised, or nobody said what.
        """
        if not self.came_quantised:
            raise InputError(
                f"{self.onnx} is not quantised: expected the model that {self._source.text} was "
                "made from, in integers; name it with --model (`nmc quantize` makes one)"
            )
        return self.onnx

    @property
    def onnx(self) -> Path:
        """What others run.

        Raises:
            InputError: nobody said what.
        """
        if self._source.model is None:
            raise InputError(
                f"{self._source.text} is an artifact: expected the ONNX model that other engines "
                "run in its place; name it with --model"
            )
        return self._source.model

    @property
    def module(self) -> Any:
        """None there is.

        Raises:
            DeclinedError: always.
        """
        raise DeclinedError(
            "torch runs torch models, this one is an artifact; name its factory, "
            "package.module:factory, instead"
        )


def artifact_facts(path: Path, dense_nbytes: int, compile_s: float) -> Artifact:
    """What results say about an artifact; loads it twice, the second time with all warm.

    An artifact that this machine cannot load has a load time of 0.
    """
    from nmcompile import runtime
    from nmcompile.errors import DeviceError

    load_ms = 0.0
    with contextlib.suppress(DeviceError):  # the engine says so, too, and better
        for _ in range(2):
            begin = time.perf_counter()
            runtime.load(path).close()
            load_ms = (time.perf_counter() - begin) * 1e3
    return Artifact(
        digest=file_digest(path),
        nbytes=path.stat().st_size,
        dense_nbytes=dense_nbytes,
        compile_s=compile_s,
        load_ms=load_ms,
    )


def _zeros(inputs: Sequence[InputSpec]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for _, shape, dtype in inputs)


def _density(graph: Graph, names: set[str]) -> float:
    """Share of non-zero weights in some layers, 1 where there is none."""
    weights = [layer.weight for layer in graph.layers() if layer.name in names]
    total = sum(weight.size for weight in weights)
    return sum(int(np.count_nonzero(weight)) for weight in weights) / total if total else 1.0
