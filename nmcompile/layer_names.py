"""Which layer of the model an operator of the Relax module is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nmcompile.passes.graphs.interface import Layer


class LayerNames:
    """Finds the layer of a Relax operator by its weights: importers do not keep names.

    Weights that are stored as integers are known by these, and by what they stand for.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._names: dict[bytes, list[str]] = {}
        self._others: Counter[str] = Counter()
        for layer in layers:
            self._names.setdefault(self._key(layer.weight), []).append(layer.name)
            if layer.integers is not None:
                stored = self._key(layer.integers.values)
                self._names.setdefault(stored, []).append(layer.name)

    def of(self, group: Any) -> str:
        """The layer's name; layers with equal weights are taken in order."""
        weight = group.model_weight
        name = None if weight is None else self.find(weight)
        if name is None:
            self._others[group.op] += 1
            name = f"{group.op}_{self._others[group.op]}"
        return name

    def find(self, weight: npt.NDArray[Any]) -> str | None:
        """The name of the layer with this weight; those with equal ones are taken in order."""
        names = self._names.get(self._key(weight), [])
        return names.pop(0) if len(names) > 1 else next(iter(names), None)

    @staticmethod
    def _key(weight: npt.NDArray[Any]) -> bytes:
        flat = np.ascontiguousarray(weight)
        found = hashlib.sha256(f"{flat.shape} {flat.dtype}".encode())
        found.update(flat.reshape(-1).view(np.uint8).data)
        return found.digest()
