"""The same operators in onnxruntime, on NCHW tensors, as its quantised operators have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tests.support.peer import by_peer

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"


def run_onnx(op: str, inputs: Sequence[Any], domain: str = "", **attributes: Any) -> Array:
    """One node on constants and on its first input, with optimisations off."""
    names = [f"i{k}" for k in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], domain=domain, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    constants = zip(inputs[1:], names[1:], strict=True)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(names[0], kind, inputs[0].shape)],
        [onnx.ValueInfoProto(name="y")],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for array, name in constants],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return by_peer(model, {names[0]: inputs[0]}, as_defined=True)[0]


def to_nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
