"""A model in integers, for engines that compute in int8: made here, or as it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from nmcompile.errors import ModelError
from nmcompile.model_files import check_model_file
from nmcompile.progress import Progress

if TYPE_CHECKING:
    import onnx

Calibrate = Callable[[], Sequence[Mapping[str, npt.NDArray[Any]]]]
"""Gives batches of the model's inputs."""

_MARKS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_OPERATORS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")


def is_quantised(proto: onnx.ModelProto) -> bool:
    """Whether an ONNX model holds operators on integers, or conversions to them."""
    return any(
        node.op_type in _MARKS or node.op_type.startswith(_OPERATORS) for node in proto.graph.node
    )


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without the weights that are beside it.

    Raises:
        ModelError: it cannot be read.
    """
    import onnx

    check_model_file(path)
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's implementations raise different ones
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ModelError(
            f"model file {path} cannot be read as ONNX: {why}; check the path, or export it again"
        ) from error


def output_step(path: Path) -> float:
    """The step of the first output of an ONNX file; 0 where it is not quantised.

    Raises:
        ModelError: it cannot be read.
    """
    from onnx import numpy_helper

    graph = read_graph(path).graph
    name = graph.output[0].name
    makers = [n for n in graph.node if name in n.output and n.op_type == "DequantizeLinear"]
    scales = [
        numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if makers and tensor.name == makers[0].input[1]
    ]
    return float(scales[0].max()) if scales else 0.0


def quantise_file(
    path: Path, title: str, output: Path, calibrate: Calibrate, progress: Progress
) -> None:
    """Write the quantised form of a folded model.

    Args:
        path: of the float32 model.
        title: what messages call it.
        output: the file to write.
        calibrate: gives what the ranges of activations are taken from.
        progress: told about every stage.

    Raises:
        NmcompileError: as `nmcompile.quantize`.
    """
    import onnx

    from nmcompile.quantization import quantize

    proto = onnx.load(path)
    proto.graph.name = title
    quantize(proto, calibrate(), output=output, progress=progress)
