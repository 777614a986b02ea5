"""The backend tests of the onnx package whose inputs and outputs an artifact can hold."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test import loader

Array = npt.NDArray[Any]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
PLAIN = frozenset(
    {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8,
        TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32,
        TensorProto.INT64,
    }
)  # fmt: skip
"""What artifacts hold and numpy has; tests with other dtypes, sequences or strings are left out."""


@dataclass(frozen=True, eq=False)
class Case:
    """One test: a model, and what it gives for some inputs.

    rtol, atol: how far off an output may be.
    data: pairs of inputs and outputs, in the order of the graph's.
    """

    name: str
    model: onnx.ModelProto
    data: Sequence[tuple[Sequence[Array], Sequence[Array]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(node.op_type for node in self.model.graph.node)


def load_cases() -> list[Case]:
    """All plain tests, by name."""
    # Making the tests divides by zero and casts out of range on purpose, and prints.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        found = [case for kind in KINDS for case in _of_kind(kind)]
    return sorted(found, key=lambda case: case.name)


def _of_kind(kind: str) -> Iterator[Case]:
    for test in loader.load_model_tests(kind=kind):
        model, data = test.model, test.data_sets
        if model is None:
            model, data = _from_files(Path(str(test.model_dir)))
        values = (*model.graph.input, *model.graph.output)
        if not all(value.type.tensor_type.elem_type in PLAIN for value in values):
            continue
        pairs = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in data or ()]
        yield Case(test.name, model, pairs, test.rtol, test.atol)


def _from_files(folder: Path) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    model = onnx.load(folder / "model.onnx")
    data = []
    for case in sorted(folder.glob("test_data_set_*")):
        inputs, outputs = (
            [
                onnx.load_tensor(case / f"{role}_{index}.pb")
                for index in range(len(list(case.glob(f"{role}_*.pb"))))
            ]
            for role in ("input", "output")
        )
        data.append((inputs, outputs))
    return model, data


def _arrays(values: Sequence[Any]) -> list[Array]:
    return [
        numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        for value in values
    ]
