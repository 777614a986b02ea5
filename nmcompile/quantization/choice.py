"""Which layers stay in float32: those that a user names, and those that cost the outputs most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.errors import InputError
from nmcompile.progress import Progress
from nmcompile.quantization.calibration import Calibration
from nmcompile.quantization.folded import FoldedModel
from nmcompile.quantization.measure import Loss, first_output, ratio
from nmcompile.quantization.ranges import write_integers
from nmcompile.quantization.settings import MaxLoss

Array = npt.NDArray[Any]

RANKED = 8
"""Runs that rank the layers: there is one model per layer."""

SHOWN = 8  # names in a message


def named_layers(model: FoldedModel, wanted: Sequence[str]) -> frozenset[str]:
    """The layers that fit names or wildcards.

    Raises:
        InputError: one fits none, or they fit all.
    """
    names = [layer.name for layer in model.layers]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:SHOWN]) + (", ..." if names[SHOWN:] else "")
            raise InputError(
                f"no layer to keep in float32 is called {pattern}: expected one of {shown}; "
                "`nmc inspect` lists all"
            )
    kept = frozenset(n for n in names if any(fnmatchcase(n, pattern) for pattern in wanted))
    if len(kept) == len(names):
        raise InputError(
            f"every layer is to be kept in float32 ({', '.join(wanted)}): expected one at least to "
            "quantise; keep fewer"
        )
    return kept


def rank_layers(
    model: FoldedModel, ranges: Any, data: Calibration, progress: Progress
) -> dict[str, float]:
    """Signal to noise in dB of the first output, where one layer alone is quantised."""
    few = data.take(np.arange(min(len(data), RANKED * max(data.batch, 1))))
    expected = first_output(model.proto, few, model.title)
    following = {name: node for node in model.proto.graph.node for name in node.input}
    nodes = {node.name: node for node in model.proto.graph.node}
    found = {}
    for done, layer in enumerate(model.layers):
        progress("quantising each layer alone", done, len(model.layers))
        # With the activation that becomes part of its range.
        behind = following.get(nodes[layer.name].output[0])
        clamped = [behind.name] if behind is not None and behind.op_type in ("Relu", "Clip") else []
        alone = write_integers(model, ranges, only=[layer.name, *clamped])
        found[layer.name] = ratio(expected, first_output(alone, few, model.title))
    return found


def leave_worst(
    ranked: Sequence[str],
    most: MaxLoss,
    loss_without: Callable[[frozenset[str]], Loss],
    progress: Progress,
) -> frozenset[str]:
    """The fewest of the worst layers that have to stay in float32.

    Found by halving: the more stay, the less is taken to be lost.

    Args:
        ranked: names, the worst first.
        most: that may be lost.
        loss_without: the loss where these layers stay in float32.
        progress: told what goes on.

    Raises:
        InputError: the loss is larger even if one layer alone is in integers.
    """

    def enough(count: int) -> Loss | None:
        progress(f"leaving {count} layers in float32")
        loss = loss_without(frozenset(ranked[:count]))
        return None if loss.within(most) else loss

    if enough(0) is None:
        return frozenset()
    low, high = 0, len(ranked) - 1
    lost = enough(high)
    if lost is not None:
        same = "" if lost.same_top1 is None else f" and {lost.same_top1:.1%} equal top classes"
        raise InputError(
            f"the largest loss, {most}, cannot be had: with {ranked[-1]} alone in int8 the output "
            f"has {lost.decibels:.1f} dB{same}; allow more, or give more calibration data"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) is None else (middle, high)
    return frozenset(ranked[:high])
