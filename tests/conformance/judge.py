"""Right, refused, or a fault: what compiling and running one backend test comes to."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.backend.test.runner import Runner

import nmcompile
from nmcompile.errors import NmcompileError
from tests.conformance.cases import Case

RIGHT, FIXED, REFUSED, WRONG, FOREIGN = (
    "right", "right with constants", "refused", "wrong", "foreign",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a test came to; `text` is the refusal's sentence, or what is wrong."""

    outcome: str
    text: str = ""


def judge(case: Case) -> Verdict:
    """Compile and run a test, and compare as onnx does.

    The tests make inputs of everything. What is refused so is tried as models have it: all inputs
    but the first, which are shapes, axes and weights, as constants.
    """
    verdict = judge_as_is(case)
    if verdict.outcome == REFUSED and (fixed := with_constants(case)) is not None:
        again = judge_as_is(fixed)
        return Verdict(FIXED, verdict.text) if again.outcome == RIGHT else again
    return verdict


def with_constants(case: Case) -> Case | None:
    """The case with only its first input, or None where that is all it has."""
    if len(case.data) != 1 or len(case.data[0][0]) < 2:
        return None
    inputs, outputs = case.data[0]
    weights = {tensor.name for tensor in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in weights]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)
    for name, array in zip(names[1:], inputs[1:], strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    first = next(value for value in case.model.graph.input if value.name == names[0])
    del model.graph.input[:]
    model.graph.input.append(first)
    return replace(case, model=model, data=[(inputs[:1], outputs)])


def judge_as_is(case: Case) -> Verdict:
    """One attempt."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nmc"
            nmcompile.compile(case.model, output=path)
            session = nmcompile.runtime.load(path, threads=1)
        # Old models have their weights among the inputs.
        weights = {tensor.name for tensor in case.model.graph.initializer}
        names = [value.name for value in case.model.graph.input if value.name not in weights]
        results = []
        for inputs, _ in case.data:
            results.append(list(session.run(dict(zip(names, inputs, strict=True))).values()))
    except NmcompileError as error:
        return Verdict(REFUSED, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Verdict(FOREIGN, f"{type(error).__name__}: {error}")
    for (_, outputs), found in zip(case.data, results, strict=True):
        try:
            Runner.assert_similar_outputs(outputs, found, case.rtol, case.atol)
        except AssertionError as error:
            return Verdict(WRONG, " ".join(str(error).split()))
    return Verdict(RIGHT)
