"""PT2E's quantisation in the one form that is imported: constants of the dtypes that ONNX has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.graphs.fx.reading import FxReader
from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.operators.table import Limit
from nmcompile.passes.operators.torch.editing import Replacement

LIBRARY = "quantized_decomposed"
"""The library whose operators PT2E writes."""

QUANTISED = {torch.int8: "int8", torch.uint8: "uint8", torch.int16: "int16"}
"""What real numbers are quantised to."""

_STORED = QUANTISED | {torch.int32: "int32"}


def rewrite_quantised(graph: FxGraph, node: fx.Node) -> str | None:
    """Numbers in place of tensors of one element; slices with float32 scales and small zero points.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = dict(arguments_of(node))
    for name, value in given.items():
        if name != "input" and isinstance(value, fx.Node):
            known = graph.constant(value)
            if known is None:
                return f"its {name} is computed when the model runs"
            given[name] = known
    named = "scales" if "scales" in given else "scale"
    scale = np.asarray(given.pop(named))
    point = given.pop("zero_points" if named == "scales" else "zero_point")
    limits = [int(np.asarray(given[name]).item()) for name in ("quant_min", "quant_max")]
    zero = np.zeros(scale.shape, np.int64) if point is None else np.asarray(point)
    dtype, source = given["dtype"], given["input"]
    if dtype not in _STORED or zero.min() < limits[0] or zero.max() > limits[1]:
        return f"its integers are {dtype} with zero points from {zero.min()} to {zero.max()}"
    verb = str(node.target).removeprefix(f"{LIBRARY}.").partition("_")[0]
    kept = given.get("out_dtype")
    out = {} if kept is None else {"out_dtype": kept}
    new, library = Replacement(graph, node), getattr(torch.ops, LIBRARY)
    if scale.size == 1 and "axis" not in given:
        target = getattr(library, f"{verb}_per_tensor").default
        numbers: tuple[Any, ...] = (float(scale.item()), int(zero.item()))
        new.finish(new.add(target, source, *numbers, *limits, dtype, **out))
        return None
    target = getattr(library, f"{verb}_per_channel").default
    slices = (scale.astype(np.float32), zero.astype(_STORED[dtype]))
    constants = [new.constant(np.ascontiguousarray(array)) for array in slices]
    new.finish(new.add(target, source, *constants, given["axis"], *limits, dtype, **out))
    return None


def _plain_slices(graph: FxReader, node: fx.Node) -> str | None:
    given = arguments_of(node)
    scales, points = given["scales"], given["zero_points"]
    if points is None:
        return "none"
    known: list[Array | None] = [graph.stored(value) for value in (scales, points)]
    if known[0] is None or known[1] is None:
        return "computed ones"
    expected = ("float32", _STORED.get(given["dtype"]))
    found = (known[0].dtype.name, known[1].dtype.name)
    return None if found == expected else " and ".join(found)


plain_slices = Limit(
    "constant float32 scales, and zero points of the integers' dtype", _plain_slices
)


def _dtype(graph: FxReader, node: fx.Node) -> str | None:
    found = arguments_of(node)["dtype"]
    return None if found in QUANTISED else f"{found}"


quantised_dtype = Limit("integers of 8 bits, or signed ones of 16", _dtype)


def _whole_range(graph: FxReader, node: fx.Node) -> str | None:
    given = arguments_of(node)
    found = given["quant_min"], given["quant_max"]
    info = torch.iinfo(given["dtype"])
    return None if found == (info.min, info.max) else f"{found[0]} to {found[1]}"


whole_range = Limit("the whole range of the dtype", _whole_range)
