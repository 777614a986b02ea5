"""Backend tests in the older versions of their operator that mean the same."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from tests.conformance.cases import Case

OLDEST = 11
"""Models of older operator sets are converted to this one before anything is looked at."""

FLATTENING = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
"""Before version 13 these join all axes behind theirs; onnx's reference evaluator does not."""


def older(case: Case) -> Iterator[Case]:
    """The case in each earlier version of its one operator, where onnx itself gives the same."""
    nodes, imports = case.model.graph.node, case.model.opset_import
    if case.operators & FLATTENING:
        return
    if len(nodes) != 1 or len(imports) != 1 or imports[0].domain or not case.data:
        return
    since = _since(nodes[0].op_type, imports[0].version)
    while since > OLDEST:
        version = since - 1
        since = _since(nodes[0].op_type, version)
        if since == 0:
            return
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        model.opset_import[0].version = version
        model.ir_version = min(model.ir_version, 8)
        if _means_the_same(case, model):
            yield replace(case, name=f"{case.name} in version {since}", model=model)


def _since(operator: str, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(operator, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _means_the_same(case: Case, model: onnx.ModelProto) -> bool:
    inputs, outputs = case.data[0]
    try:
        onnx.checker.check_model(model, full_check=True)
        names = [value.name for value in model.graph.input]
        with np.errstate(all="ignore"):
            found = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
        for ours, theirs in zip(found, outputs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.atol)
    except Exception:
        return False
    return True
