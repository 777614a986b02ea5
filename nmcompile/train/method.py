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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmcompile.errors import PatternError
from nmcompile.sparsity import NM, LayerFacts, OneByN, Pattern, check, left_out
from nmcompile.train.parametrizations import MaskedWeight

Weighted = nn.Conv1d | nn.Conv2d | nn.Linear


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
        for name, module in list(weighted(model)):
            masked = masked_weight(module)
            if masked is not None:
                unmask(module)
                patterns[name] = masked.pattern
        if not patterns:
            raise PatternError(
                f"{type(self).__name__}.finalize: expected a model that `prepare` returned, found "
                "one without masked weights"
            )
        for name, pattern in patterns.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            result = check(weight.detach().cpu().numpy(), pattern)
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
        self._prepared: list[tuple[nn.Module, MaskedWeight]] = []

    def prepare(self, model: nn.Module, *, arrange: bool = True) -> nn.Module:
        """Mask the weights of the model's layers, in place; as `Method.prepare`."""
        rows = self.choose(model)
        before = {id(parameter) for parameter in model.parameters()}
        names = [row.name for row in rows if row.skipped is None]
        notes = self._arrange(model, names) if arrange else {}
        found = [(name, model.get_submodule(name)) for name in names]
        masks = [self._masked_weight(_weight(module).detach()) for _, module in found]
        self._prepared.clear()
        for (_, module), masked in zip(found, masks, strict=True):
            parametrize.register_parametrization(module, "weight", masked)
            self._prepared.append((module, masked))
        self.layers = tuple(replace(row, note=notes.get(row.name, row.note)) for row in rows)
        self._watch(model, before)
        return model

    def choose(self, model: nn.Module) -> tuple[PreparedLayer, ...]:
        """Which layers `prepare` would mask; changes nothing.

        Raises:
            PatternError: as `Method.prepare`.
        """
        found = dict(weighted(model))
        facts = [_facts(name, module) for name, module in found.items()]
        skipped = left_out(facts, self.only, self.exclude)
        rows = tuple(
            PreparedLayer(name, skipped.get(name) or _misfit(module, self.pattern))
            for name, module in found.items()
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


def _facts(name: str, module: Weighted) -> LayerFacts:
    if isinstance(module, nn.Linear):
        return LayerFacts(name, "linear", module.in_features)
    op: Literal["conv2d", "other"] = "conv2d" if isinstance(module, nn.Conv2d) else "other"
    return LayerFacts(name, op, module.in_channels, module.groups)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _misfit(module: Weighted, pattern: Pattern) -> str | None:
    """Why a weight cannot be masked: its groups or blocks do not come out even."""
    if parametrize.is_parametrized(module, "weight"):
        return "its weight is parametrized already"
    weight = module.weight
    if isinstance(pattern, NM):
        length = weight[0].numel() if pattern.axis == "ic" else weight.numel()
        whose = "per output channel" if pattern.axis == "ic" else "in all"
        if length % pattern.m:
            return f"its {length} weights {whose} are no multiple of {pattern.m}"
    if isinstance(pattern, OneByN) and len(weight) % pattern.n:
        return f"its {len(weight)} output channels are no multiple of {pattern.n}"
    return None


def masked_weight(module: nn.Module) -> MaskedWeight | None:
    """The parametrization of a prepared layer's weight, None for other modules."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    found = module.parametrizations["weight"][0]  # type: ignore[index]
    return found if isinstance(found, MaskedWeight) else None


def dense_weight(module: nn.Module) -> nn.Parameter:
    """The weight under the mask of a prepared layer."""
    original = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
    assert isinstance(original, nn.Parameter)
    return original


@torch.no_grad()
def unmask(module: nn.Module) -> None:
    """Make the masked weight of a prepared layer its plain one.

    As torch's `remove_parametrizations`, which changes the class of the module: copies of a
    prepared model share that class, and would lose their weights.
    """
    masked, original = module.weight, dense_weight(module)
    assert isinstance(masked, Tensor)
    if len(list(module.parametrizations.children())) > 1:  # type: ignore[union-attr]
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return
    original.copy_(masked)
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    module.register_parameter("weight", original)


def weighted(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """All convolutions and linear layers, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Weighted):
            yield name, module
