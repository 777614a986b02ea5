"""The weights that methods mask: of convolutions, linear layers and attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmcompile.passes.graphs.interface import PROJECTIONS, weight_owner
from nmcompile.sparsity import NM, LayerFacts, OneByN, Pattern
from nmcompile.train.parametrizations import MaskedWeight

Single = nn.Conv1d | nn.Conv2d | nn.Linear
"""Modules of one weight, called `weight`."""


@dataclass(frozen=True)
class LayerWeight:
    """A weight of a model, masked or not.

    name: of the layer, as in reports: that of the module, but `attn.in_proj` for the
        `in_proj_weight` of an `nn.MultiheadAttention` called `attn`, whose other layers are modules
        of their own.
    owner: the path of the module.
    module, tensor: where it is.
    """

    name: str
    owner: str
    module: nn.Module
    tensor: str = "weight"

    @property
    def key(self) -> str:
        """What a state dict calls it where it is not masked."""
        return _joined(self.owner, self.tensor)

    @property
    def parametrization(self) -> str:
        """What a state dict begins the names of its mask with where it is masked."""
        return _joined(self.owner, f"parametrizations.{self.tensor}")

    @property
    def value(self) -> Tensor:
        """What the forward pass multiplies with: the masked weight."""
        found = getattr(self.module, self.tensor)
        assert isinstance(found, Tensor)
        return found

    @property
    def masked(self) -> MaskedWeight | None:
        """Its parametrization, None where no method has prepared it."""
        return masked_weight(self.module, self.tensor)

    @property
    def dense(self) -> nn.Parameter:
        """The weight under the mask of a prepared layer."""
        return dense_weight(self.module, self.tensor)

    @property
    def facts(self) -> LayerFacts:
        """What decides whether it is pruned where nobody names it."""
        module = self.module
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            return LayerFacts(self.name, "linear", self.value.shape[1])
        op: Literal["conv2d", "other"] = "conv2d" if isinstance(module, nn.Conv2d) else "other"
        return LayerFacts(self.name, op, module.in_channels, module.groups)

    def misfit(self, pattern: Pattern) -> str | None:
        """Why it cannot be masked: its groups or blocks do not come out even."""
        if parametrize.is_parametrized(self.module, self.tensor):
            return "its weight is parametrized already"
        weight = self.value
        if isinstance(pattern, NM):
            length = weight[0].numel() if pattern.axis == "ic" else weight.numel()
            whose = "per output channel" if pattern.axis == "ic" else "in all"
            if length % pattern.m:
                return f"its {length} weights {whose} are no multiple of {pattern.m}"
        if isinstance(pattern, OneByN) and len(weight) % pattern.n:
            return f"its {len(weight)} output channels are no multiple of {pattern.n}"
        return None


def weights_of(model: nn.Module) -> Iterator[LayerWeight]:
    """Those of all convolutions, linear layers and attentions, in order."""
    for name, module in model.named_modules():
        if isinstance(module, Single):
            yield LayerWeight(name, name, module)
        elif isinstance(module, nn.MultiheadAttention):
            # It has one for all inputs of one width, else one for each.
            for tensor in PROJECTIONS:
                if isinstance(getattr(module, tensor), Tensor):
                    layer = weight_owner(_joined(name, tensor))
                    yield LayerWeight(layer, name, module, tensor)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def shared_weights(model: nn.Module, places: Sequence[LayerWeight]) -> dict[str, str]:
    """Why weights cannot be masked that other modules have, too, by the layer's name.

    A mask belongs to one module; what `finalize` makes zero would be zero in both.
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for tensor, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(_joined(name, tensor))
    found = {}
    for place in places:
        names = owners.get(id(place.value), [])
        if len(names) > 1:
            found[place.name] = f"its weight is shared: {' and '.join(names)} are one tensor"
    return found


def masked_weight(module: nn.Module, tensor: str = "weight") -> MaskedWeight | None:
    """The parametrization of a prepared layer's weight, None for other modules."""
    if not parametrize.is_parametrized(module, tensor):
        return None
    found = module.parametrizations[tensor][0]  # type: ignore[index]
    return found if isinstance(found, MaskedWeight) else None


def dense_weight(module: nn.Module, tensor: str = "weight") -> nn.Parameter:
    """The weight under the mask of a prepared layer."""
    original = module.parametrizations[tensor].original  # type: ignore[index,union-attr]
    assert isinstance(original, nn.Parameter)
    return original


@torch.no_grad()
def unmask(module: nn.Module) -> None:
    """Make the masked weights of a prepared module its plain ones.

    As torch's `remove_parametrizations`, which changes the class of the module: copies of a
    prepared model share that class, and would lose their weights.
    """
    tensors = list(dict(module.parametrizations.named_children()))  # type: ignore[union-attr]
    ours = [tensor for tensor in tensors if masked_weight(module, tensor) is not None]
    if len(ours) < len(tensors):
        for tensor in ours:
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
        return
    plain = {tensor: dense_weight(module, tensor) for tensor in ours}
    for tensor, original in plain.items():
        original.copy_(getattr(module, tensor))
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for tensor, original in plain.items():
        module.register_parameter(tensor, original)
