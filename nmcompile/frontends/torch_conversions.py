"""Conversions of aten operators that TVM's importer lacks."""

from collections.abc import Callable
from typing import Any

from torch import fx

from nmcompile.passes.graphs.fx.nodes import arguments_of


def conversions() -> dict[str, Callable[[fx.Node, Any], Any]]:
    """By operator, what gives the Relax variable of a node; for the importer."""
    from tvm import relax

    def extreme(reduce: Callable[..., Any]) -> Callable[[fx.Node, Any], Any]:
        def convert(node: fx.Node, importer: Any) -> Any:
            given = arguments_of(node)
            axes = list(given["dim"]) or None
            value = importer.env[given["self"]]
            return importer.block_builder.emit(reduce(value, axes, given["keepdim"]))

        return convert

    return {"amax.default": extreme(relax.op.max), "amin.default": extreme(relax.op.min)}
