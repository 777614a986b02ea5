"""How far an engine's outputs are from the reference's, and how many images it gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.bench.engines.engine import Engine, summary
from nmcompile.bench.engines.table import name_inputs
from nmcompile.bench.results import Accuracy
from nmcompile.bench.samples import Samples
from nmcompile.errors import InputError, ModelError, NmcompileError

Array = npt.NDArray[Any]


def try_run(name: str, engine: Engine, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs for inputs that the engine may not take.

    Raises:
        InputError: it does not.
        NmcompileError: it says so itself.
    """
    try:
        return engine.run(inputs)[0]
    except NmcompileError:
        raise
    except Exception as error:  # every engine has exceptions of its own
        raise InputError(
            f"{name} cannot run the model on these inputs: {summary(error)}; name the model "
            "that the artifact was made from, or export it again"
        ) from error


def outputs_of(name: str, engine: Engine, samples: Samples) -> list[Array]:
    """Every output, one row for each image; one for all where there is no batch in it.

    Raises:
        NmcompileError: as `try_run`.
    """
    runs = []
    for inputs in samples.batches:
        outputs = try_run(name, engine, name_inputs(engine, inputs))
        # Copies: the next run may overwrite them.
        runs.append(_rows_of(outputs, inputs))
    whole = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
    return [rows[: samples.count] if len(rows) > samples.count else rows for rows in whole]


def rows_of(outputs: Sequence[Array], samples: Samples) -> list[Array]:
    """The outputs of one run, of the only batch of `samples`, as `outputs_of` has them."""
    (inputs,) = samples.batches
    return _rows_of(outputs, inputs)


def judge(
    reference: str,
    expected: list[Array],
    found: list[Array],
    labels: Array | None,
    step: float = 0.0,
) -> Accuracy:
    """Compare an engine's outputs with the reference's.

    Args:
        reference: who computed what is expected.
        expected: outputs as `outputs_of` has them.
        found: likewise.
        labels: one per row, or None.
        step: of a quantised output: values that are no further apart are equal but for rounding, so
            that a largest one is any that is as close to the reference's.

    Raises:
        InputError: they have other shapes: another model.
        ModelError: they are no numbers.
    """
    shapes = [[rows.shape for rows in outputs] for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expected outputs of the shapes {shapes[0]}, which {reference} returns for the same "
            f"inputs, found {shapes[1]}; name the model that the artifact was made from"
        )
    if not all(np.isfinite(rows).all() for rows in found):
        raise ModelError(
            f"expected numbers, found outputs that are infinite or not a number; {reference} is "
            "the engine to compare with: report it if that one returns numbers"
        )
    errors = [
        float(np.abs(a - b).max() / max(float(np.ptp(b)), 1e-30))
        for a, b in zip(found, expected, strict=True)
        if a.size
    ]
    if not found[0].size:  # of an output whose length depends on values
        error, samples = max(errors, default=0.0), len(found[0])
        return Accuracy(
            reference=reference, max_error=error, same_top1=1.0, top1=None, samples=samples
        )
    ours = found[0].argmax(1)
    held = np.take_along_axis(expected[0], ours[:, None], 1)[:, 0]
    same = held >= expected[0].max(1) - 1.001 * step  # not less for the last bit of a float
    return Accuracy(
        reference=reference,
        max_error=max(errors, default=0.0),
        same_top1=float(same.mean()),
        top1=float((ours == labels).mean()) if labels is not None else None,
        samples=len(ours),
    )


def _rows_of(outputs: Sequence[Array], inputs: Mapping[str, Array]) -> list[Array]:
    size = len(next(iter(inputs.values())))
    shapes = [(size if out.ndim and len(out) == size else 1, -1) for out in outputs]
    return [
        np.array(out.reshape(shape), np.float64) for out, shape in zip(outputs, shapes, strict=True)
    ]
