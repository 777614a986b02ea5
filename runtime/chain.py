"""Runs the steps of a model in turn: values go from ours to onnxruntime and back without a copy."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmcompile.errors import ArtifactError
from nmcompile.runtime.compiled import Call, Compiled
from nmcompile.runtime.native import NativeRuntime
from nmcompile.runtime.profile import HostClock, Times, record_runs
from nmcompile.runtime.rest import Rest, to_value
from nmcompile.runtime.specs import TensorSpec
from nmcompile.runtime.steps import Step
from nmcompile.runtime.tensors import from_numpy, to_numpy
from nmcompile.runtime.variants import Variant

RUNS = "onnxruntime"
"""The symbol of calls that are parts of onnxruntime's."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The steps of a model for one shape, loaded, in order.

    Values are TVM's tensors where ours make them and onnxruntime's where that does; both are kept
    for as long as a later step reads them.
    """

    native: NativeRuntime
    path: Path
    form: Variant
    parts: Sequence[Compiled | Rest]

    def run(self, call: Call, arguments: Sequence[Any]) -> dict[str, Any]:
        """Arrays by output name, from tensors in the order of the model's inputs.

        Raises:
            ArtifactError: a part fails, or makes something else than the manifest says.
        """

        def run(part: Compiled | Rest, values: Sequence[Any]) -> list[Any]:
            return part.run(values) if isinstance(part, Rest) else part.run(call, values)

        return self._follow(arguments, run)

    def profile(self, call: Call, arguments: Sequence[Any], repeats: int) -> list[Times]:
        """Symbol and milliseconds of every call of each of `repeats` runs.

        Each step is repeated by itself, with what the steps before it have made.
        """
        runs: list[Times] = [[] for _ in range(repeats)]

        def run(part: Compiled | Rest, values: Sequence[Any]) -> list[Any]:
            if isinstance(part, Rest):
                result, found = _timed(part, values, repeats)
            else:
                compiled, everything = part, [*values, *part.params]

                def record() -> list[Times]:
                    machine = compiled.library.machine
                    clock = HostClock()
                    return list(record_runs(machine, compiled.entry, everything, repeats, clock))

                result, found = part.run(call, values), call(record, [])
            for times, more in zip(runs, found, strict=True):
                times += more
            return result

        self._follow(arguments, run)
        return runs

    def _follow(
        self, arguments: Sequence[Any], run: Callable[[Compiled | Rest, Sequence[Any]], list[Any]]
    ) -> dict[str, Any]:
        steps, outputs = self.form.steps, self.form.outputs
        names = [spec.name for spec in self.form.inputs]
        values = dict(zip(names, arguments, strict=True))
        last = _last_readers(steps)
        for index, (step, part) in enumerate(zip(steps, self.parts, strict=True)):
            if isinstance(part, Rest):
                given = [self._to_rest(values[name]) for name in step.inputs]
            else:
                given = [self._to_ours(spec, values[spec.name]) for spec in part.inputs]
            values.update(zip(step.outputs, run(part, given), strict=True))
            del given
            wanted = {spec.name for spec in outputs}
            for name in [name for name in values if last.get(name, -1) <= index]:
                if name not in wanted:
                    del values[name]
        return {spec.name: self._result(spec, values[spec.name]) for spec in outputs}

    def _to_rest(self, value: Any) -> Any:
        if not isinstance(value, self.native.tensor):
            return value
        tensor: Any = value  # of a class that is known when it runs
        return to_value(np.from_dlpack(tensor))

    def _to_ours(self, spec: TensorSpec, value: Any) -> Any:
        if isinstance(value, self.native.tensor):
            return value
        return from_numpy(self.native, self._array(spec, value))

    def _result(self, spec: TensorSpec, value: Any) -> Any:
        if isinstance(value, self.native.tensor):
            return to_numpy(self.native, value)
        return self._array(spec, value)

    def _array(self, spec: TensorSpec, value: Any) -> Any:
        """What onnxruntime has made, over its memory.

        Raises:
            ArtifactError: it is not what the manifest says.
        """
        array = value.numpy() if value.is_tensor() else None
        if array is None or not spec.fits(array.shape) or array.dtype.name != spec.dtype:
            found = "no tensor" if array is None else f"{array.dtype.name} of shape {array.shape}"
            raise ArtifactError(
                f"{self.path}: expected {spec.name!r}, which onnxruntime makes, to be {spec.dtype} "
                f"of shape {spec.shape}, found {found}; compile the model again"
            )
        return array


def _last_readers(steps: Sequence[Step]) -> Mapping[str, int]:
    return {name: index for index, step in enumerate(steps) for name in step.inputs}


def _timed(part: Rest, values: Sequence[Any], repeats: int) -> tuple[list[Any], list[Times]]:
    """One result, and a time for each repeat."""
    result, found = part.run(values), []
    for _ in range(repeats):
        begin = time.perf_counter()
        part.run(values)
        found.append([(RUNS, (time.perf_counter() - begin) * 1e3)])
    return result, found
