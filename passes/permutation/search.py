"""How one space of channels is searched: by groups of input channels, or by output blocks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nmcompile.passes.graphs.interface import Array
from nmcompile.passes.permutation.layouts import Segments
from nmcompile.passes.permutation.spaces import ChannelSpaces
from nmcompile.sparsity import NM, OneByN, Pattern, energy_kept, project
from nmcompile.sparsity.permute import ESCAPES, Deadline, Found, OnShare, search_order, window
from nmcompile.sparsity.project import block_norms, checked_density, kept_of_norms
from nmcompile.sparsity.rearrange import Filters, MaskRule, search_filters

_ESCAPES_COST = 3e9
"""What the escapes of one search take at most, in the maxima of `search_order`: about a second."""

_LEAST_COST = 1e9
"""What the smallest search may take on a busy machine, in the same unit."""


@dataclass(frozen=True, eq=False)
class Effort:
    """How long one search goes on; fields as the arguments of `search_order`."""

    seed: int
    escapes: int
    deadline: Deadline
    on_share: OnShare

    @property
    def options(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class LayerSearch(ABC):
    """What a pattern asks of an order. Weights are OIHW.

    rounds: most escapes of each search of a space; all spaces are searched once before any is
    searched again, so that a time limit does not starve the last.
    """

    pattern: Pattern
    rounds: tuple[int, ...]

    @abstractmethod
    def segments(self, spaces: ChannelSpaces, name: str) -> Segments:
        """The channels of a layer whose order decides what the pattern keeps of it."""

    @abstractmethod
    def obstacle(self, spaces: ChannelSpaces, name: str, weight: Array) -> str | None:
        """Why the layer cannot be searched, or None."""

    @abstractmethod
    def cost(self, channels: int, weights: Sequence[Array], escapes: int) -> float:
        """What a search takes, in units of the same kind for all spaces."""

    @abstractmethod
    def run(
        self, spaces: ChannelSpaces, space: int, weights: Mapping[str, Array], effort: Effort
    ) -> Found:
        """Search the order of a space for the layers that have it among their `segments`."""

    @abstractmethod
    def imposed(self, weight: Array) -> Array:
        """The weight with the pattern."""

    def energy(self, weight: Array) -> float:
        """Share of the squared magnitude that the pattern keeps."""
        return energy_kept(weight, self.imposed(weight))

    def magnitude(self, weight: Array) -> float:
        """The magnitude that the pattern keeps."""
        return float(np.abs(self.imposed(weight)).sum(dtype=np.float64))


class GroupSearch(LayerSearch):
    """N:M: groups of the channels that a layer reads."""

    rounds = (0, ESCAPES)

    def __init__(self, pattern: NM) -> None:
        """Set the pattern."""
        self.pattern: NM = pattern

    def segments(self, spaces: ChannelSpaces, name: str) -> Segments:
        """Those read."""
        return spaces.inputs.get(name, ())

    def obstacle(self, spaces: ChannelSpaces, name: str, weight: Array) -> str | None:
        """Groups must lie along the channels at one place of the kernel and of the image."""
        channels, m = weight.shape[1], self.pattern.m
        taps = weight.shape[2] * weight.shape[3]
        segments = self.segments(spaces, name)
        if any(segment.repeat > 1 for segment in segments):
            return "its groups run over the places of a flattened image"
        if len({segment.space for segment in segments}) < len(segments):
            return "it reads the same channels twice"
        if self.pattern.axis == "flat" and taps > 1:
            return f"groups of {self.pattern} run over the kernel"
        if channels % m and (taps > 1 or self.pattern.axis != "ic"):
            return f"its {channels} input channels are no multiple of {m}"
        return None

    def cost(self, channels: int, weights: Sequence[Array], escapes: int) -> float:
        """All exchanges once, then the escapes; without, some seven times more until the top."""
        exchanges = float(channels**2 * sum(w.size // w.shape[1] for w in weights))
        return exchanges + _ESCAPES_COST if escapes else 8.0 * exchanges + _LEAST_COST

    def run(
        self, spaces: ChannelSpaces, space: int, weights: Mapping[str, Array], effort: Effort
    ) -> Found:
        """As `nmcompile.sparsity.permute.search_order`."""
        channels, windows = spaces.spaces[space].size, []
        for name, weight in weights.items():
            offset = 0
            for segment in self.segments(spaces, name):
                if segment.space == space:
                    break
                offset += segment.size
            columns = np.abs(weight).transpose(1, 0, 2, 3).reshape(weight.shape[1], -1)
            windows.append(window(columns, self.pattern.m, offset, channels))
        n, m = self.pattern.n, self.pattern.m
        return search_order(windows, channels, n, m, **effort.options)

    def imposed(self, weight: Array) -> Array:
        """As projection does."""
        return project(weight, self.pattern)


class BlockSearch(LayerSearch):
    """1xN: blocks of the channels that a layer writes."""

    rounds = (ESCAPES,)

    def __init__(self, pattern: OneByN, density: float | None, rule: MaskRule | None) -> None:
        """Set the pattern, and which blocks are kept: as `project` does at `density`, or `rule`.

        Raises:
            PatternError: neither is given, or the density is out of range.
        """
        self.pattern: OneByN = pattern
        self.rule: MaskRule
        self.by_group = rule is None  # whether groups of outputs are pruned one by one
        if rule is None:
            share = checked_density(pattern, density)
            self.rule = lambda norms: kept_of_norms(norms, share)
        else:
            self.rule = rule

    def segments(self, spaces: ChannelSpaces, name: str) -> Segments:
        """Those written; a depthwise convolution only passes them on."""
        return spaces.outputs[name] if name in spaces.inputs else ()

    def obstacle(self, spaces: ChannelSpaces, name: str, weight: Array) -> str | None:
        """Blocks must not reach from one order into the next, as between heads of attention."""
        sizes = [segment.size for segment in self.segments(spaces, name)]
        n = self.pattern.n
        if len(sizes) > 1 and not self.by_group:
            return "its blocks are chosen over all of its outputs, which have several orders"
        if len(sizes) > 1 and any(size % n for size in sizes):
            return f"its outputs have orders of {min(sizes)} channels, no multiple of {n}"
        return None

    def cost(self, channels: int, weights: Sequence[Array], escapes: int) -> float:
        """Some tens of turns that weigh each channel in each group, and the escapes."""
        inputs = sum(weight.shape[1] for weight in weights)
        turns = 50.0 * inputs * channels * (channels / self.pattern.n + 1)
        return float(turns + _ESCAPES_COST)

    def run(
        self, spaces: ChannelSpaces, space: int, weights: Mapping[str, Array], effort: Effort
    ) -> Found:
        """As `nmcompile.sparsity.rearrange.search_filters`."""
        filters = []
        for name, weight in weights.items():
            norms, offset = np.abs(weight).sum(axis=(2, 3), dtype=np.float64), 0
            for segment in self.segments(spaces, name):
                if segment.space == space:
                    rows = norms[offset : offset + segment.size]
                    filters.append(Filters(rows, self.rule))
                offset += segment.size
        return search_filters(filters, self.pattern.n, **effort.options)

    def imposed(self, weight: Array) -> Array:
        """Zero outside the kept blocks."""
        n = self.pattern.n
        keep = np.repeat(self.rule(block_norms(weight, n)), n, axis=0)[: len(weight)]
        return np.asarray(weight * keep[:, :, None, None])
