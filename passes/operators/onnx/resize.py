"""Resize as what it is: a linear map along each axis that changes."""

import math

import numpy as np
import onnx
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.constants import evaluate
from nmcompile.passes.graphs.onnx.graph import OnnxGraph
from nmcompile.passes.operators.onnx.editing import Replacement
from nmcompile.passes.operators.onnx.limits import attribute, operand
from nmcompile.passes.operators.taps import taps_of


def rewrite_resize(graph: OnnxGraph, node: ir.Node) -> str | None:
    """Write a Resize as weighted sums of gathers, one axis after another.

    Every mode of interpolation weighs elements along one axis by numbers that depend on positions
    alone. They are found by having onnx's reference evaluator resize an identity matrix.

    Returns:
        None, or the reason why that cannot be done.
    """
    data = node.inputs[0]
    shape = graph.shape(data) if data is not None else None
    result = graph.shape(node.outputs[0])
    if data is None or shape is None or result is None:
        return "its input and output have no fixed shapes"
    axes = [int(a) % len(shape) for a in attribute(node, "axes", tuple(range(len(shape))))]
    roi, scales, sizes = (_known(graph, node, index) for index in (1, 2, 3))
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize" and attribute(node, "extrapolation_value", 0.0) != 0:
        return "extrapolation_value is not 0"
    if sizes is None and scales is None:
        return "neither its scales nor its sizes are constants"
    new = Replacement(graph, node)
    value = data
    for place, axis in enumerate(axes):
        extent, wanted = shape[axis], result[axis]
        cropped = mode == "tf_crop_and_resize" and roi is not None
        scale = float(scales[place]) if scales is not None else wanted / extent
        if extent == wanted and scale == 1 and not cropped:
            continue
        whole = math.isclose(scale * extent, wanted, rel_tol=1e-6)
        if mode == "align_corners" and not whole:
            return "runtimes differ about align_corners where scales give no whole sizes"
        window = (0.0, 1.0)
        if cropped and roi is not None:
            window = (float(roi[place]), float(roi[place + len(axes)]))
        matrix = _matrix(graph, node, extent, wanted, None if sizes is not None else scale, window)
        if matrix is None:
            return "onnx's reference evaluator cannot run it"
        value = _apply(new, value, axis, len(shape), matrix)
    if value is data:
        value = new.add("Identity", data)
    new.finish(value)
    return None


def _known(graph: OnnxGraph, node: ir.Node, index: int) -> Array | None:
    value = operand(node, index)
    array = None if value is None else graph.constant(value)
    return array if array is not None and array.size else None


def _matrix(
    graph: OnnxGraph,
    node: ir.Node,
    extent: int,
    wanted: int,
    scale: float | None,
    window: tuple[float, float],
) -> Array | None:
    """What the node does along one axis, (outputs, inputs)."""
    kept = (
        "antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode",
        "nearest_mode", "extrapolation_value",
    )  # fmt: skip
    given = {name: attribute(node, name) for name in kept if name in node.attributes}
    single = onnx.helper.make_node("Resize", ["x", "roi", "scales", "sizes"], ["y"], **given)
    feeds: dict[str, Array] = {
        "x": np.eye(extent, dtype=np.float32),
        "roi": np.array([window[0], 0, window[1], 1], np.float32),
    }
    if scale is None:
        single.input[2] = ""
        feeds["sizes"] = np.array([wanted, extent])
    else:
        single.input.pop()
        feeds["scales"] = np.array([scale, 1], np.float32)
    found = evaluate(single, feeds, graph.model.graph.opset_imports[""])
    return None if found is None or found[0].shape != (wanted, extent) else found[0]


def _apply(new: Replacement, value: ir.Value, axis: int, rank: int, matrix: Array) -> ir.Value:
    total: ir.Value | None = None
    for tap in taps_of(matrix):
        term = new.add("Gather", value, new.constant(tap.index), axis=axis)
        if tap.weight is not None:
            weight = tap.weight.reshape([-1] + [1] * (rank - 1 - axis))
            term = new.add("Mul", term, new.constant(weight))
        total = term if total is None else new.add("Add", total, term)
    assert total is not None
    return total
