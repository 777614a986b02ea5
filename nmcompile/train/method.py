"""The protocol of all training methods, and which layers they prepare.

    method = SRSTE("2:4")
    model = method.prepare(model)         # before the optimizer is made
    for epoch in range(epochs):
        method.on_epoch(epoch, epochs)
        for x, y in batches:
            method.on_step()              # before every forward pass
            ...                           # forward, backward, optimizer step as usual
    model = method.finalize(model)        # plain modules whose weights hold the pattern

Everything a method keeps is in the model's `state_dict`. To go on training, prepare a fresh model
in the same way and load it. The model may be wrapped (`DataParallel`, `DistributedDataParallel`)
after `prepare`, and run under autocast.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmcompile.errors import PatternError
from nmcompile.sparsity import Pattern, check, left_out
from nmcompile.train.parametrizations import MaskedWeight
from nmcompile.train.weights import LayerWeight, shared_weights, unmask, weights_of


@dataclass(frozen=True)
class PreparedLayer:
    """What a method did to one layer.

    name: of the module.
    skipped: why it was left as it is, or None.
    note: what else is to be said.
    """

    name: str
    skipped: str | None = None
    note: str = ""


class Method:
    """A way to train a model towards a pattern.

    layers: after `prepare`, one row per convolution and linear layer.
    """

    layers: tuple[PreparedLayer, ...] = ()
    _added: Mapping[str, Tensor] = {}
    _steps = 0

    def prepare(self, model: nn.Module, *, arrange: bool = True) -> nn.Module:
        """Make the model trainable by the method, in place.

        Args:
            model: with plain weights.
            arrange: whether a method that reorders channels does so; of no use where trained
                weights are loaded next, which have an order already.

        Raises:
            PatternError: a name fits no layer, or no layer can be prepared; the model is as it
                was.
        """
        raise NotImplementedError

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """At the start of epoch `epoch` of 0 to `epochs` - 1, on every process alike."""

    def on_step(self, decay_scale: float = 1.0) -> None:
        """Before every forward pass, of training.

        Args:
            decay_scale: factor on the decay of pruned weights, which each backward pass adds to
                their gradients: 1 / k where the gradients of k passes are accumulated, times the
                loss scale where the loss is scaled.
        """
        self._steps += 1

    def finalize(self, model: nn.Module) -> nn.Module:
        """Turn what `prepare` made into plain modules, in place, and verify their weights.

        Args:
            model: what `prepare` returned, or a wrapper of it; any prepared model whose state was
                loaded.

        Returns:
            The model, unwrapped.

        Raises:
            PatternError: the model is not prepared, or a weight does not hold the pattern.

        A warning says where training never changed what `prepare` added.
        """
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        self._warn_of_idle(model)
        self._settle(model)
        patterns = self._collapse(model)
        found = [(place, place.masked) for place in weights_of(model)]
        prepared = [(place, masked) for place, masked in found if masked is not None]
        patterns |= {place.name: masked.pattern for place, masked in prepared}
        for module in dict.fromkeys(place.module for place, _ in prepared):
            unmask(module)
        if not patterns:
            raise PatternError(
                f"{type(self).__name__}.finalize: expected a model that `prepare` returned, found "
                "one without masked weights"
            )
        places = {place.name: place for place in weights_of(model)}
        for name, pattern in patterns.items():
            result = check(places[name].value.detach().cpu().numpy(), pattern)
            if not result.ok:
                raise PatternError(
                    f"layer {name}: its weight breaks {pattern} in {result.violations} groups, the "
                    f"first at index {result.first}; this is a mistake of {type(self).__name__}"
                )
        return model

    def _watch(self, model: nn.Module, before: Collection[int]) -> None:
        """Remember the parameters that `prepare` added, those whose `id` is not in `before`."""
        found = model.named_parameters()
        self._added = {n: p.detach().clone() for n, p in found if id(p) not in before}
        self._steps = 0

    def _warn_of_idle(self, model: nn.Module) -> None:
        """Warn where training went on, and nothing of what `prepare` added took part."""
        found = dict(model.named_parameters())
        if not self._steps or not self._added or not self._added.keys() <= found.keys():
            return
        if all(
            torch.equal(found[name].cpu().to(p.dtype), p.cpu()) for name, p in self._added.items()
        ):
            first = next(iter(self._added))
            warnings.warn(
                f"{type(self).__name__}: none of the {len(self._added)} parameters that prepare "
                f"added has changed in {self._steps} steps ({first} the first): an optimizer that "
                "is made before prepare does not know them; make it after prepare, of "
                "model.parameters(), and train again",
                stacklevel=3,
            )

    def _settle(self, model: nn.Module) -> None:
        """Decide what training has left open."""

    def _collapse(self, model: nn.Module) -> dict[str, Pattern]:
        """Replace modules that `finalize` does not know; returns the patterns of their layers."""
        return {}


class MaskingMethod(Method):
    """A method that masks weights and leaves the modules as they are."""

    def __init__(
        self,
        pattern: Pattern,
        *,
        only: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """Set the pattern and the layers.

        By default those that `nmcompile.sparsity.left_out` does not leave alone.

        Args:
            pattern: the pattern.
            only: names or wildcards (`layer1.*`) of the only layers to prepare, whatever they are.
            exclude: names or wildcards of layers to leave as they are.
        """
        self.pattern = pattern
        self.only, self.exclude = only, tuple(exclude)
        self._prepared: list[tuple[LayerWeight, MaskedWeight]] = []

    def prepare(self, model: nn.Module, *, arrange: bool = True) -> nn.Module:
        """Mask the weights of the model's layers, in place; as `Method.prepare`."""
        rows = self.choose(model)
        before = {id(parameter) for parameter in model.parameters()}
        names = [row.name for row in rows if row.skipped is None]
        notes = self._arrange(model, names) if arrange else {}
        places = {place.name: place for place in weights_of(model)}
        found = [places[name] for name in names]
        masks = [self._masked_weight(place.value.detach()) for place in found]
        self._prepared = list(zip(found, masks, strict=True))
        for place, masked in self._prepared:
            parametrize.register_parametrization(place.module, place.tensor, masked)
        self.layers = tuple(replace(row, note=notes.get(row.name, row.note)) for row in rows)
        self._watch(model, before)
        return model

    def choose(self, model: nn.Module) -> tuple[PreparedLayer, ...]:
        """Which layers `prepare` would mask; changes nothing.

        Raises:
            PatternError: as `Method.prepare`.
        """
        found = list(weights_of(model))
        skipped = left_out([place.facts for place in found], self.only, self.exclude)
        shared = shared_weights(model, found)
        rows = tuple(
            PreparedLayer(
                place.name,
                skipped.get(place.name) or place.misfit(self.pattern) or shared.get(place.name),
            )
            for place in found
        )
        if all(row.skipped is not None for row in rows):
            why = "; ".join(f"{row.name}: {row.skipped}" for row in rows[:4])
            raise PatternError(
                f"{type(self).__name__}: expected layers that {self.pattern} fits, found none "
                f"({why or 'the model has no convolution and no linear layer'}); name some with "
                "`only`"
            )
        return rows

    def on_step(self, decay_scale: float = 1.0) -> None:
        """As `Method.on_step`."""
        super().on_step(decay_scale)
        for _, masked in self._prepared:
            masked.decay_scale = decay_scale

    def _arrange(self, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
        """Change the model before the layers of these names are masked; returns notes on them."""
        return {}

    def _masked_weight(self, weight: Tensor) -> MaskedWeight:
        """The parametrization of one layer's weight."""
        raise NotImplementedError
