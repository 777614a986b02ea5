"""The parameters and buffers that a compiled graph took for constants, and whether they changed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

PROBES = 16
"""Elements of each tensor that are looked at in every call.

Writes through `.data` and through numpy's views leave a tensor's version as it is. Pruning masks
and optimizers change many elements of many tensors: some of these are among them.
"""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the size of an element, integers of that size."""


class Constants:
    """Tensors as they were at one time.

    Every call of a graph hands over its parameters again: the same ones, or those of another
    instance of the model's class. They are not kept alive here; nor is their memory, once one of
    them is gone.
    """

    def __init__(self, held: Mapping[int, torch.Tensor], own: Sequence[torch.Tensor]) -> None:
        """Remember tensors.

        Args:
            held: by position among the arguments of the graph.
            own: those that the graph has itself.
        """
        release = functools.partial(_release, weakref.ref(self))
        self._held = [(position, weakref.ref(tensor, release)) for position, tensor in held.items()]
        self._own = list(own)
        tensors = [*held.values(), *own]
        self._stamps = [_stamp(tensor) for tensor in tensors]
        self._probes = _probes(tensors)
        self._seen = [torch.cat(group) for group in self._probes]

    def are(self, arguments: Sequence[Any]) -> bool:
        """Whether a call has the same tensors for constants, changed or not."""
        return all(reference() is arguments[position] for position, reference in self._held)

    def hold(self, arguments: Sequence[Any]) -> bool:
        """Whether nothing has changed; `are` has said yes."""
        tensors = [*(arguments[position] for position, _ in self._held), *self._own]
        for tensor, stamp in zip(tensors, self._stamps, strict=True):
            if _stamp(tensor) != stamp:
                return False
        return all(
            torch.equal(torch.cat(group), seen)
            for group, seen in zip(self._probes, self._seen, strict=True)
        )

    @property
    def gone(self) -> bool:
        """Whether a tensor is no more."""
        return any(reference() is None for _, reference in self._held)


def _release(constants: weakref.ref[Constants], _: object) -> None:
    """Let go of the memory of tensors of which one is gone."""
    found = constants()
    if found is not None:
        found._probes, found._seen = [], []


def _stamp(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


def _probes(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of a few elements of each, by dtype: what `torch.cat` takes at once."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            stored = tensor.detach()
            # In the order of memory, whatever the order of the dimensions.
            extent = 1 + sum(
                (n - 1) * s for n, s in zip(stored.shape, stored.stride(), strict=True)
            )
            count = min(PROBES, extent)
            # Odd, so that it falls on every place of the groups of N:M.
            step = max((extent // count - 1) | 1, 1)
            view = stored.as_strided((count,), (step,), stored.storage_offset())
            if view.element_size() in _BITS:
                view = view.view(_BITS[view.element_size()])  # NaN is equal to itself then
                groups.setdefault(view.dtype, []).append(view)
    return list(groups.values())
