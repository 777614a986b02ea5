"""Conditions on ONNX nodes, for the table."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.graphs.onnx.planar import read_planar
from nmcompile.passes.graphs.onnx.reading import OnnxReader
from nmcompile.passes.operators.table import Limit

PIECE = 60
"""Characters of a value that a message shows."""


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The contents of an attribute, lists as tuples; strings as text."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def constants(*inputs: tuple[int, str]) -> tuple[Limit, ...]:
    """These inputs, which say what the output looks like, are constants or left out."""

    def limit(index: int, name: str) -> Limit:
        def check(graph: OnnxReader, node: ir.Node) -> str | None:
            value = operand(node, index)
            if value is None or graph.constant(value) is not None:
                return None
            return f"{value.name}, which is computed when the model runs"

        return Limit(f"its {name} to be a constant", check)

    return tuple(limit(index, name) for index, name in inputs)


def one_of(name: str, *allowed: Any) -> Limit:
    """An attribute has one of these values; the first is its default."""

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        found = attribute(node, name, allowed[0])
        return None if found in allowed else f"{found}"

    return Limit(f"its {name} to be {' or '.join(str(value) for value in allowed)}", check)


def absent(name: str) -> Limit:
    """An attribute is not given."""

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        found = attribute(node, name)
        return None if found is None else f"{name} {found}"

    return Limit(f"no {name}", check)


def without(index: int, name: str) -> Limit:
    """An optional input is left out."""

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        value = operand(node, index)
        return None if value is None else f"{value.name}"

    return Limit(f"no input {name}", check)


def ranks(*allowed: int) -> Limit:
    """The first input has one of these ranks."""

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        shape = graph.shape(node.inputs[0]) if node.inputs[0] is not None else None
        if shape is None:
            return "an unknown one"
        return None if len(shape) in allowed else f"{len(shape)}"

    return Limit(f"an input of rank {' or '.join(map(str, allowed))}", check)


def _first_output(graph: OnnxReader, node: ir.Node) -> str | None:
    for index, value in enumerate(node.outputs[1:], 1):
        if graph.uses(value):
            return f"output {index} ({value.name}) used"
    return None


first_output = Limit("only its first output to be used", _first_output)


def _same_dtype(graph: OnnxReader, node: ir.Node) -> str | None:
    found = {graph.dtype(value) for value in node.inputs if value is not None}
    return None if len(found) == 1 else " and ".join(sorted(map(str, found)))


same_dtype = Limit("inputs of one dtype", _same_dtype)


def dtypes_of(index: int, name: str, allowed: Iterable[str]) -> Limit:
    """Another input than the first has one of these dtypes, or is left out."""
    known = frozenset(allowed)

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        value = operand(node, index)
        found = None if value is None else graph.dtype(value)
        return None if found is None or found in known else found

    return Limit(f"its {name} to be {' or '.join(sorted(known))}", check)


def output_dtypes(allowed: Iterable[str]) -> Limit:
    """The first output has one of these dtypes."""
    known = frozenset(allowed)

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        found = graph.dtype(node.outputs[0])
        return None if found in known else f"{found}"

    return Limit(f"an output of {' or '.join(sorted(known))}", check)


def _floats_by_fmod(graph: OnnxReader, node: ir.Node) -> str | None:
    floats = str(graph.dtype(node.inputs[0])).startswith("float")
    return "0" if floats and not attribute(node, "fmod", 0) else None


floats_by_fmod = Limit("its fmod to be 1 for real numbers", _floats_by_fmod)


def _within_width(graph: OnnxReader, node: ir.Node) -> str | None:
    by = graph.constant(node.inputs[1]) if node.inputs[1] is not None else None
    if by is None:
        return "shifts that are computed when the model runs"
    width = by.dtype.itemsize * 8
    bad = by[(by < 0) | (by >= width)].reshape(-1)
    return f"a shift by {bad[0]}" if bad.size else None


within_width = Limit("constant shifts that are smaller than the width", _within_width)


def _no_training(graph: OnnxReader, node: ir.Node) -> str | None:
    value = operand(node, 2)
    if value is None:
        return None
    training = graph.constant(value)
    if training is None:
        return f"{value.name}, which is computed when the model runs"
    return "true" if training.any() else None


no_training = Limit("its training_mode to be the constant false", _no_training)


def _known_shape(graph: OnnxReader, node: ir.Node) -> str | None:
    for value in node.outputs:
        if value.name and graph.shape(value) is None:
            return f"{value.name}, whose shape depends on values that the model computes"
    return None


known_shape = Limit("outputs of known shapes", _known_shape)


def _not_planar(graph: OnnxReader, node: ir.Node) -> str | None:
    found = read_planar(node, graph.constant, graph.shape)
    return None if found is None else "one"


not_planar = Limit("no other form as convolutions of images", _not_planar)


def _native_resize(graph: OnnxReader, node: ir.Node) -> str | None:
    """Two forms are everywhere in vision models, and TVM's own resizing is right about them."""
    shape, result = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if shape is None or result is None or len(shape) != 4 or shape[:2] != result[:2]:
        return f"{shape} to {result}"
    scales = operand(node, 2)
    given = graph.constant(scales) if scales is not None else None
    if given is not None and given.size:
        exact = all(
            math.isclose(float(s) * n, m, rel_tol=1e-6)
            for s, n, m in zip(given, shape, result, strict=len(given) == 4)
        )
        if not exact:
            return f"scales {_spell(given)} that change {shape} to {result}"
    for name, plain in (("antialias", 0), ("axes", None), ("exclude_outside", 0)):
        if attribute(node, name, plain) != plain:
            return f"{name} {attribute(node, name)}"
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "an aspect ratio kept"
    mode = attribute(node, "mode", "nearest")
    where = attribute(node, "coordinate_transformation_mode", "half_pixel")
    rounding = attribute(node, "nearest_mode", "round_prefer_floor")
    whole = all(m % n == 0 for n, m in zip(shape, result, strict=True))
    if mode == "nearest" and where == "asymmetric" and rounding == "floor" and whole:
        return None
    grows = all(m > 1 for m in result[2:])
    known = where in ("half_pixel", "align_corners") or (where == "pytorch_half_pixel" and grows)
    if mode == "linear" and known:
        return None
    return f"{mode}, {where}" + (f", {rounding}" if mode == "nearest" else "")


native_resize = Limit(
    "images resized by linear interpolation, or by nearest asymmetric floor to a whole multiple",
    _native_resize,
)


def list_of(index: int, name: str) -> Limit:
    """An input is left out, or has rank 1."""

    def check(graph: OnnxReader, node: ir.Node) -> str | None:
        value = operand(node, index)
        shape = None if value is None else graph.shape(value)
        return (
            f"shape {shape}"
            if value is not None and shape is not None and len(shape) != 1
            else None
        )

    return Limit(f"its {name} to be a list", check)


def _slope(graph: OnnxReader, node: ir.Node) -> str | None:
    data, slope = (None if v is None else graph.shape(v) for v in node.inputs[:2])
    if data is None or slope is None:
        return "unknown shapes"
    fits = len(slope) <= len(data) and all(
        s in (1, n) for s, n in zip(slope[::-1], data[::-1], strict=False)
    )
    return None if fits else f"{slope} for an input of {data}"


slope_along_end = Limit("a slope whose shape fits the end of the input's", _slope)


def _no_zero(graph: OnnxReader, node: ir.Node) -> str | None:
    target = graph.constant(node.inputs[1]) if node.inputs[1] is not None else None
    zero = target is not None and bool((target == 0).any())
    return "1 and a dimension of 0" if zero and attribute(node, "allowzero", 0) else None


no_zero = Limit("its allowzero to be 0", _no_zero)


def _spell(array: Array) -> str:
    text = np.array2string(np.asarray(array), separator=", ")
    return text if len(text) <= PIECE else f"{text[:PIECE]}..."


def _filled(graph: OnnxReader, node: ir.Node) -> str | None:
    for value in (*node.inputs, *node.outputs):
        shape = None if value is None else graph.shape(value)
        if value is not None and shape is not None and 0 in shape:
            return f"{value.name} of shape {shape}"
    return None


filled = Limit("tensors with elements", _filled)
