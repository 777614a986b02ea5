"""Conditions on aten nodes, for the table."""

from typing import Any

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.graphs.fx.planar import read_planar
from nmcompile.passes.graphs.fx.reading import FxReader
from nmcompile.passes.operators.table import Limit


def one_of(name: str, *allowed: Any) -> Limit:
    """An argument has one of these values."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        found = arguments_of(node).get(name, allowed[0])
        plain = list(found) if isinstance(found, (list, tuple)) else found
        return None if plain in allowed else f"{plain}"

    return Limit(f"its {name} to be {' or '.join(str(value) for value in allowed)}", check)


def ranks(*allowed: int) -> Limit:
    """The first operand has one of these ranks."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        shape = graph.shape(node.all_input_nodes[0])
        return None if shape is not None and len(shape) in allowed else f"{len(shape or ())}"

    return Limit(f"an input of rank {' or '.join(map(str, allowed))}", check)


def only_outputs(*read: int) -> Limit:
    """Of what the operator returns, only these are used."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        for user in node.users:
            if user.op == "output" or (user.args[1:2] and user.args[1] not in read):
                return f"output {user.args[1] if user.args[1:2] else 'all'} used"
        return None

    return Limit(f"only output {' and '.join(map(str, read))} to be used", check)


def given(name: str) -> Limit:
    """An argument is not left out."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        return "none" if arguments_of(node).get(name) is None else None

    return Limit(f"a {name}", check)


def at_least(name: str, least: int) -> Limit:
    """An argument is a number from this one on."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        found = arguments_of(node)[name]
        return None if isinstance(found, int) and found >= least else f"{found}"

    return Limit(f"its {name} to be at least {least}", check)


def number(name: str) -> Limit:
    """An argument is a number or left out, no tensor."""

    def check(graph: FxReader, node: fx.Node) -> str | None:
        found = arguments_of(node).get(name)
        return f"the tensor {found.name}" if isinstance(found, fx.Node) else None

    return Limit(f"its {name} to be a number", check)


def _same_dtype(graph: FxReader, node: fx.Node) -> str | None:
    found = {graph.dtype(source) for source in node.all_input_nodes}
    return None if len(found) <= 1 else " and ".join(sorted(map(str, found)))


same_dtype = Limit("operands of one dtype", _same_dtype)


def _filled(graph: FxReader, node: fx.Node) -> str | None:
    for source in node.all_input_nodes:
        shape = graph.shape(source)
        if shape is not None and 0 in shape:
            return f"{source.name} of shape {shape}"
    return None


filled = Limit("operands with elements", _filled)


def _one_index(graph: FxReader, node: fx.Node) -> str | None:
    given = [index for index in arguments_of(node)["indices"] if index is not None]
    return None if len(given) == 1 else f"{len(given)} of them"


one_index = Limit("indices along one axis", _one_index)


def _static(graph: FxReader, node: fx.Node) -> str | None:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and graph.shape(node) is None:
        return f"{tuple(value.shape)}, which depends on values that the model computes"
    return None


known_shape = Limit("an output of known shape", _static)


def _from_front(graph: FxReader, node: fx.Node) -> str | None:
    for index in arguments_of(node)["indices"]:
        values = None if index is None else graph.constant(index)
        if index is not None and (values is None or (values.size and values.min() < 0)):
            return "computed ones" if values is None else f"{values.min()}"
    return None


from_front = Limit("constant indices of at least 0", _from_front)


def _fitting_number(graph: FxReader, node: fx.Node) -> str | None:
    given = arguments_of(node)
    dtype, number = graph.dtype(given["self"]), given["other"]
    if dtype is None or dtype.startswith(("float", "bfloat")):
        return None
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return None if number == int(number) and low <= number <= high else f"{number} beside {dtype}"


fitting_number = Limit("a number that its operand's dtype can hold", _fitting_number)


def _no_mixed_truth(graph: FxReader, node: fx.Node) -> str | None:
    found = {graph.dtype(source) for source in node.all_input_nodes}
    mixed = "bool" in found and len(found) > 1
    return " and ".join(sorted(map(str, found))) if mixed else None


no_mixed_truth = Limit("truth values beside truth values only", _no_mixed_truth)


def _not_planar(graph: FxReader, node: fx.Node) -> str | None:
    found = read_planar(node, graph.constant, graph.shape)
    return None if found is None else "one"


not_planar = Limit("no other form as convolutions of images", _not_planar)
