"""Normalisation in forms that TVM's importer gets right."""

import operator

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


def rewrite_tracked_norm(graph: FxGraph, node: fx.Node) -> str | None:
    """Instance norm by statistics that were tracked, which is a batch norm.

    Returns:
        None, or the reason why that cannot be done.
    """
    given = arguments_of(node)
    mean, variance = given["running_mean"], given["running_var"]
    shape = graph.shape(given["input"])
    if given["use_input_stats"] or mean is None or variance is None or shape is None:
        return "its statistics are those of its input"
    new = Replacement(graph, node)
    affine = [
        new.constant(fill(shape[1], np.float32)) if given[name] is None else given[name]
        for name, fill in (("weight", np.ones), ("bias", np.zeros))
    ]
    statistics = (mean, variance, given["momentum"], given["eps"])
    target = aten._native_batch_norm_legit_no_training.default
    normed = new.add(target, given["input"], *affine, *statistics)
    new.finish(new.add(operator.getitem, normed, 0))
    return None
