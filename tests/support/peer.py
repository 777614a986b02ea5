"""onnxruntime, which results are held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

Array = npt.NDArray[Any]


def peer(model: onnx.ModelProto | Path, as_defined: bool = False) -> onnxruntime.InferenceSession:
    """A session on one thread: more would wait busily for each other beside other tests.

    `as_defined` keeps each operator by itself, in the arithmetic that defines it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # Without VNNI its faster sums of products of bytes saturate in 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if as_defined:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def by_peer(
    model: onnx.ModelProto | Path, feeds: Mapping[str, Array], as_defined: bool = False
) -> list[Array]:
    """All outputs."""
    return [np.asarray(value) for value in peer(model, as_defined).run(None, dict(feeds))]
