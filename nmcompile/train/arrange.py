"""Reordering the channels of a live model, so that one-shot pruning keeps more of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nmcompile.errors import NmcompileError, PatternError

if TYPE_CHECKING:
    from nmcompile.passes.graphs.fx.graph import FxGraph
    from nmcompile.passes.permutation.search import LayerSearch

IMAGE = 224
"""Height and width of the default example, which every image classifier takes."""

SHOWN = 4  # names in a message


@dataclass(frozen=True)
class Arrangement:
    """How `prepare` searches for an order of channels; arguments as of `ASP`.

    Raises:
        PatternError: the time limit is below 0.
    """

    example_inputs: Any
    seed: int
    time_limit: float

    def __post_init__(self) -> None:
        """Validate the time limit."""
        if not self.time_limit >= 0:
            raise PatternError(
                f"expected a time limit of at least 0 seconds, found {self.time_limit}"
            )

    def apply(
        self, model: nn.Module, search: LayerSearch, names: Sequence[str], method: str
    ) -> dict[str, str]:
        """Reorder the channels of a model in place; its function in eval mode stays the same.

        Args:
            model: with plain weights.
            search: of the pattern.
            names: the layers that will get the pattern.
            method: what to call the caller in messages.

        Returns:
            What to note about each layer.

        Raises:
            PatternError: the model cannot be traced, or has parameters that it does not use in
                evaluation mode, so that nobody knows what must move with the channels. The model
                is as it was.
        """
        from nmcompile.passes.permute_channels import describe, plan_permutation

        graph = self._traced(model, method)
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        read = {id(tensors[name]) for name, _ in graph.named_constants() if name in tensors}
        unread = [name for name, tensor in tensors.items() if id(tensor) not in read]
        if unread:
            more = ", ..." if unread[SHOWN:] else ""
            raise PatternError(
                f"{method}: expected a model that uses all of its parameters in evaluation mode, "
                f"found {len(unread)} that it does not: {', '.join(unread[:SHOWN])}{more}; the "
                "order of the channels that they belong to is unknown: remove them, or prepare "
                "without reordering channels"
            )
        tensors.update(model.named_buffers(remove_duplicate=False))
        plan = plan_permutation(
            graph, search, names, seed=self.seed, time_limit=self.time_limit, movable=tensors
        )
        with torch.no_grad():
            for reorder in plan.reorders:
                tensor = tensors[graph.stored_name(reorder.constant)]
                index = torch.from_numpy(reorder.order).to(tensor.device)
                tensor.copy_(tensor.index_select(reorder.axis, index))
        notes = dict.fromkeys(names, "no order was searched for it: it is no 2-d layer")
        notes.update((row.layer, describe(row, search.pattern)) for row in plan.layers)
        return notes

    def _traced(self, model: nn.Module, method: str) -> FxGraph:
        from nmcompile.frontends.torch_frontend import to_graph
        from nmcompile.passes.graphs.fx.graph import FxGraph

        examples = self.example_inputs
        if examples is None:
            examples = _image(model, method)
        try:
            graph = FxGraph(to_graph(model, examples))
        except NmcompileError as error:
            given = "the given" if self.example_inputs is not None else f"a {IMAGE} x {IMAGE}"
            raise PatternError(
                f"{method}: cannot trace {type(model).__name__} with {given} example to find what "
                f"reads its channels ({error}); give example_inputs=(x,) that its forward takes, "
                "or prepare without reordering channels"
            ) from error
        graph.sweep()  # of constants that nothing reads
        return graph


def _image(model: nn.Module, method: str) -> tuple[Tensor]:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise PatternError(
            f"{method}: expected example_inputs for a model without two-dimensional convolutions, "
            "found none; give example_inputs=(x,) that its forward takes"
        )
    return (first.weight.new_zeros(1, first.in_channels, IMAGE, IMAGE),)
