"""One model at one batch before it is timed: weights, samples, and the outputs to be expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from nmcompile.bench.accuracy import judge, outputs_of, rows_of
from nmcompile.bench.engines import (
    AS_DEFINED,
    Engine,
    EngineRow,
    find_engine,
    is_installed,
    open_row,
)
from nmcompile.bench.matrix import PatternSpec, Setting
from nmcompile.bench.quantised import output_step
from nmcompile.bench.results import Accuracy
from nmcompile.bench.samples import (
    Samples,
    check_labels,
    random_inputs,
    random_samples,
    read_samples,
)
from nmcompile.bench.sources import ArtifactSource, Source
from nmcompile.bench.variants import ArtifactVariant, FoldedVariant, Variant
from nmcompile.errors import NmcompileError
from nmcompile.frontends import SourceModel

Array = npt.NDArray[Any]
T = TypeVar("T")
REFERENCES = ("onnxruntime", "torch")  # the first that takes the model
RANDOM = "random inputs"
CALIBRATED = 32
"""Images that a model is quantised on, at most: its time does not depend on them."""


class Preparation:
    """Makes everything once, when it is first asked for, and fails every time in the same way.

    Attributes:
        calibration: what models were quantised on; "" while none was.
    """

    def __init__(
        self, source: Source, batch: int | None, folder: Path, data: Path | None, limit: int
    ) -> None:
        """Open nothing yet; `data` and `limit` as `read_samples` takes them."""
        self._source, self._batch, self._folder = source, batch, folder
        self._data, self._limit = data, limit
        self._made: dict[Any, Any] = {}
        self.calibration = ""

    def variant(self, spec: PatternSpec) -> Variant:
        """The model with weights of a pattern."""
        made: Variant = self._once(("variant", spec.text), lambda: self._variant(spec))
        return made

    def accuracy(self, setting: Setting, engine: Engine) -> Accuracy | None:
        """How far the engine is from the reference on the same weights; None without one.

        Raises:
            NmcompileError: the engine does not take the inputs, or runs another model.
        """
        key = ("accuracy", setting.pattern.text, setting.engine.name, setting.target)
        made: Accuracy | None = self._once(key, lambda: self._accuracy(setting, engine))
        return made

    def agreement(self, setting: Setting, outputs: Sequence[Array]) -> Accuracy | None:
        """As `accuracy`, for outputs that were made of `inputs` elsewhere.

        Raises:
            NmcompileError: they are of another model.
        """
        samples = Samples([self.inputs], self._any.batch)
        found = self._expected_by("expected of inputs", setting, samples)
        if found is None:
            return None
        return self._judged(setting, found, rows_of(outputs, samples), None)

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """One batch, to be timed."""
        return random_inputs(self._any.inputs)

    @property
    def _any(self) -> Variant:
        """Any variant: all have the same inputs."""
        found: Variant = next(v for key, v in self._made.items() if key[0] == "variant")
        return found

    def _variant(self, spec: PatternSpec) -> Variant:
        if isinstance(self._source, ArtifactSource):
            return ArtifactVariant(self._source)
        folded: SourceModel = self._once(("folded",), lambda: self._source.open(self._batch))
        return FoldedVariant(folded, spec, self._folder, self._calibrate, self._source.file)

    def _calibrate(self) -> list[dict[str, Array]]:
        """What models are quantised on: images of the data, else random inputs."""
        self.calibration = RANDOM if self._data is None else f"images of {self._data.name}"
        return self._samples.batches[: -(-CALIBRATED // self._any.batch)]

    def _accuracy(self, setting: Setting, engine: Engine) -> Accuracy | None:
        samples = self._samples
        found = self._expected_by("expected", setting, samples)
        if found is None:
            return None
        outputs = outputs_of(setting.engine.name, engine, samples)
        return self._judged(setting, found, outputs, samples.labels)

    def _judged(
        self,
        setting: Setting,
        expected: tuple[str, list[Array]],
        outputs: list[Array],
        labels: Array | None,
    ) -> Accuracy:
        variant = self.variant(setting.pattern)
        integers = variant.runs_integers(setting.engine, setting.target)
        step = output_step(variant.quantised()) if integers else 0.0
        return judge(*expected, outputs, labels, step)

    @cached_property
    def _samples(self) -> Samples:
        specs = self._any.inputs
        if self._data is not None:
            return read_samples(self._data, specs, self._limit)
        return random_samples(specs, self._any.batch)

    def _expected_by(
        self, what: str, setting: Setting, samples: Samples
    ) -> tuple[str, list[Array]] | None:
        """What the reference returns for the same weights, in float32 or quantised as here."""
        spec = setting.pattern
        integers = self.variant(spec).runs_integers(setting.engine, setting.target)
        rows = [AS_DEFINED] if integers else [find_engine(name) for name in REFERENCES]
        key = (what, spec.text, integers)
        return self._once(key, lambda: self._expected(self.variant(spec), rows, samples))

    def _expected(
        self, variant: Variant, rows: Sequence[EngineRow], samples: Samples
    ) -> tuple[str, list[Array]] | None:
        for row in rows:
            if not is_installed(row):
                continue
            try:
                engine = open_row(row, variant.form_of(row, ""), variant.shapes, 1)
            except NmcompileError:
                continue  # measured or not, another one may take it
            try:
                expected = outputs_of(row.name, engine, samples)
            finally:
                engine.close()
            if self._data is not None:
                check_labels(self._data, samples, expected[0].shape[1])
            return row.name, expected
        return None

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._made:
            try:
                self._made[key] = make()
            except NmcompileError as error:
                self._made[key] = error
        found = self._made[key]
        if isinstance(found, NmcompileError):
            raise found
        made: T = found
        return made
