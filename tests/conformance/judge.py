"""Right, refused, or a fault: what compiling and running one backend test comes to."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.runner import Runner

import nmcompile
from nmcompile.errors import NmcompileError
from tests.conformance.cases import Case
from tests.support.peer import peer

RIGHT, FIXED, SHARED, ALIKE, REFUSED, WRONG, FOREIGN = (
    "right", "right with constants", "right in onnxruntime", "as onnxruntime, which differs",
    "refused", "wrong", "foreign",
)  # fmt: skip
COMPANY = "company"


@dataclass(frozen=True)
class Verdict:
    """What a test came to; `text` is the refusal's sentence, or what is wrong."""

    outcome: str
    text: str = ""


def judge(case: Case) -> Verdict:
    """Compile and run a test, and compare as onnx does.

    The tests make inputs of everything. What is refused so is tried as models have it: all inputs
    but the first, which are shapes, axes and weights, as constants. What is refused even so is
    tried beside a convolution that pays for us: the test's operators then run in onnxruntime.
    """
    verdict = judge_as_is(case)
    if verdict.outcome == REFUSED and (fixed := with_constants(case)) is not None:
        again = judge_as_is(fixed)
        if again.outcome != REFUSED:
            return Verdict(FIXED, verdict.text) if again.outcome == RIGHT else again
    if verdict.outcome == REFUSED:
        shared = with_company(case)
        again = judge_as_is(shared)
        if again.outcome == WRONG and judge_as_is(by_onnxruntime(shared)).outcome == RIGHT:
            return Verdict(ALIKE, again.text)
        return Verdict(SHARED, verdict.text) if again.outcome == RIGHT else again
    return verdict


def by_onnxruntime(case: Case) -> Case:
    """The case with what onnxruntime makes of the whole model."""
    session = peer(case.model)
    names = [value.name for value in session.get_inputs()]
    data = [
        (inputs, session.run(None, dict(zip(names, inputs, strict=True))))
        for inputs, _ in case.data
    ]
    return replace(case, data=data)


def with_company(case: Case) -> Case:
    """The case with a convolution beside it, of an input and an output of its own."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 4)
    random = np.random.default_rng(0)
    image, weight = (random.standard_normal((1, 4, 8, 8), np.float32) for _ in range(2))
    weight = weight[0, :, :4, 0].reshape(4, 4, 1, 1)
    names = [f"{COMPANY}.{part}" for part in ("x", "weight", "y")]
    model.graph.node.append(helper.make_node("Conv", names[:2], names[2:]))
    model.graph.initializer.append(numpy_helper.from_array(weight, names[1]))
    for values, name in ((model.graph.input, names[0]), (model.graph.output, names[2])):
        values.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, image.shape))
    if not any(entry.domain == "" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 13))
    result = np.einsum("nihw,oi->nohw", image, weight[:, :, 0, 0])
    data = [([*inputs, image], [*outputs, result]) for inputs, outputs in case.data]
    return replace(case, model=model, data=data)


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
