"""Normalisation in forms that TVM's importer gets right."""

import numpy as np
import torch
from torch import fx

from nmcompile.passes.graphs.fx.graph import FxGraph
from nmcompile.passes.graphs.fx.nodes import arguments_of
from nmcompile.passes.operators.torch.editing import Replacement

aten = torch.ops.aten


def rewrite_group_norm(graph: FxGraph, node: fx.Node) -> str | None:
    """Group norm without scale or shift as the one with ones and zeros.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    shape = graph.shape(given["input"])
    if shape is None:
        return "its input has no fixed shape"
    new, channels = Replacement(graph, node), shape[1]
    weight, bias = given["weight"], given["bias"]
    weight = new.constant(np.ones(channels, np.float32)) if weight is None else weight
    bias = new.constant(np.zeros(channels, np.float32)) if bias is None else bias
    new.finish(
        new.add(node.target, given["input"], given["num_groups"], weight, bias, given["eps"])
    )
    return None
