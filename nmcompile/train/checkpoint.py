"""Reading checkpoints of the methods' public implementations."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nmcompile.errors import ModelError
from nmcompile.sparsity import NM, OneByN
from nmcompile.train.masks import as_blocks, lines_of, spread_blocks, unlines
from nmcompile.train.method import Method
from nmcompile.train.parametrizations import BestCombination, BlockMask, FixedMask, MaskedWeight
from nmcompile.train.spre import SpReConv2d
from nmcompile.train.states import State, tensors_of
from nmcompile.train.weights import LayerWeight, weights_of

COUNTER = ".num_batches_tracked"  # of batch norms: absent from older files, of no consequence
SHOWN = 6  # names in a message
BITS = 8  # of a mask in one byte
Use = Callable[[Tensor], None]  # of one tensor of a checkpoint
ASP_MASK, ASP_PRUNED = "_mma_mask", "_mma_pruned_p"  # NVIDIA's apex: behind __weight


@dataclass(frozen=True)
class CheckpointReport:
    """What `load_checkpoint` found.

    method: the recognised one: "SpRe over LBC", "SpRe over SR-STE or ASP", "LBC", "SUBP or 1xN"
        (masks), "ASP" (masks under apex's names), "torch.nn.utils.prune", "MaskLLM" (masks without
        weights), or "SR-STE or dense" (weights only, which do not say).
    loaded: keys of the checkpoint that went into the model.
    missing: keys of the model that the checkpoint has nothing for.
    unexpected: keys of the checkpoint that the model has no place for.
    mismatched: (key, what is wrong) where the place does not fit.
    """

    method: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, str], ...]


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    method: Method | None = None,
    *,
    strict: bool = True,
) -> CheckpointReport:
    """Load a checkpoint onto a model that a method has prepared, or onto a plain one.

    Understood are state dicts of plain modules, on their own or under "state_dict" and the like,
    with or without "module."; `mask` beside a weight (SUBP, 1xN), also of real numbers that
    multiply it (MaxQ); files of masks alone, as bits too (MaskLLM's `.npz`); the masks of apex's
    ASP and of torch.nn.utils.prune; `alpha` and `index_list` beside a weight (LBC); `conv_rep` and
    `bn_rep` beside a convolution and its batch norm (SpRe); and what prepared models save
    themselves. Weights are those of convolutions, linear layers and `nn.MultiheadAttention`.

    On a plain model, masks and combinations are multiplied into the weights. Weights of SR-STE are
    dense in its checkpoints, and SpRe adds modules: give the method. Masks alone leave the
    model the weights that it has.

    Args:
        model: loaded in place; its names are those of the checkpoint.
        source: a file that `torch.load(weights_only=True)` can read, an `.npz` file of arrays, or
            what they hold.
        method: prepares the model first.
        strict: whether keys that are missing, unexpected or do not fit are an error.

    Raises:
        ModelError: the file cannot be read, or (strict) keys do not fit; names them and the
            recognised method. The model is as it was then.
        PatternError: the method cannot prepare the model.
    """
    state = tensors_of(source)
    recognised = _recognise(state)
    if method is not None and strict:
        # Preparing cannot be undone, so what may not fit is tried on a copy.
        twin = copy.deepcopy(method).prepare(copy.deepcopy(model), arrange=False)
        _check(twin, _match(twin, state).report(recognised))
    if method is not None:
        method.prepare(model, arrange=False)  # the checkpoint's weights have their order
    loader = _match(model, state)
    report = loader.report(recognised)
    if strict:
        _check(model, report)
    with torch.no_grad():
        for write in loader.writes:
            write()
    return report


def _check(model: nn.Module, report: CheckpointReport) -> None:
    """Refuse what `strict` refuses."""
    if report.missing or report.unexpected or report.mismatched:
        raise ModelError(_message(model, report))


def _only_masks(state: State) -> bool:
    return all(key.endswith(".mask") for key in state)


def _recognise(state: State) -> str:
    if _only_masks(state):
        return "MaskLLM"
    scores = any(key.endswith((".alpha", ".scores")) for key in state)
    if any("conv_rep" in key for key in state):
        return "SpRe over LBC" if scores else "SpRe over SR-STE or ASP"
    if scores:
        return "LBC"
    # Models have buffers of their own that are called masks, as Swin's attn_mask.
    if any(key.endswith(f"weight{ASP_MASK}") for key in state):
        return "ASP"
    if any(key.endswith("weight_mask") for key in state):
        return "torch.nn.utils.prune"
    if any(key.endswith((".mask", ".keep")) for key in state):
        return "SUBP or 1xN"
    return "SR-STE or dense"


def _message(model: nn.Module, report: CheckpointReport) -> str:
    def some(names: tuple[str, ...]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more

    parts = [f"the checkpoint ({report.method}) does not fit {type(model).__name__}"]
    if report.mismatched:
        parts.append("; ".join(f"{key}: {why}" for key, why in report.mismatched[:SHOWN]))
    if report.missing:
        parts.append(f"it has nothing for {some(report.missing)}")
    if report.unexpected:
        parts.append(f"the model has no place for {some(report.unexpected)}")
    return (
        "; ".join(parts) + "; build the architecture it was trained with and name the method, or "
        "pass strict=False to load the rest"
    )


class _Misfit(Exception):
    """Why one key does not fit."""


def _nothing(tensor: Tensor) -> None:
    """Use of what is known already."""


def _spelled(place: LayerWeight, use: Use) -> Iterator[tuple[str, Use]]:
    """The names that masks have beside a weight: of layers (SUBP, 1xN, MaxQ) or of weights."""
    yield f"{place.name}.mask", use
    yield f"{place.key}.mask", use  # MaskLLM
    yield f"{place.key}_mask", use  # torch.nn.utils.prune
    path = place.key.removesuffix(place.tensor)
    yield f"{path}__{place.tensor}{ASP_MASK}", use
    yield f"{path}__{place.tensor}{ASP_PRUNED}", _nothing  # what it took away


def _match(model: nn.Module, state: State) -> _Loader:
    loader = _Loader(model, state)
    loader.run()
    return loader


def _mask_of(found: Tensor, weight: Tensor) -> Tensor:
    """A mask of the weight's shape; MaskLLM keeps one as the bits of its flattened form."""
    bits = -(-weight.numel() // BITS)
    if found.dtype is torch.uint8 and found.shape == (bits,) != weight.shape:
        flat = np.unpackbits(found.numpy(force=True), count=weight.numel())
        found = torch.from_numpy(flat).reshape(weight.shape)
    _check_shape(found, weight)
    if not torch.isfinite(found).all():
        raise _Misfit("it holds NaN or infinite numbers")
    return found


def _check_shape(found: Tensor, place: Tensor) -> None:
    if found.shape != place.shape:
        raise _Misfit(f"expected shape {tuple(place.shape)}, found {tuple(found.shape)}")


@dataclass
class _Loader:
    """Matches plain names with the places of a model, prepared or not.

    writes: what loads the tensors, in order; until then the model is as it was.
    """

    model: nn.Module
    state: State
    loaded: set[str] = field(default_factory=set)
    wrong: dict[str, str] = field(default_factory=dict)
    open: dict[str, Tensor] = field(default_factory=dict)  # places of the model not filled yet
    writes: list[Callable[[], object]] = field(default_factory=list)

    def report(self, method: str) -> CheckpointReport:
        return CheckpointReport(
            method,
            tuple(sorted(self.loaded)),
            tuple(key for key in self.open if not key.endswith(COUNTER)),
            tuple(sorted(set(self.state) - self.loaded - set(self.wrong))),
            tuple(self.wrong.items()),
        )

    def run(self) -> None:
        self.open = dict(self.model.state_dict())
        # Places by the names that they have in a plain model.
        names: dict[str, str] = {}
        # What a name's tensor becomes beside filling one place.
        special: dict[str, Use] = {}
        for key in self.open:
            names[key] = key
        for name, module in self.model.named_modules():
            if isinstance(module, SpReConv2d):
                self._second_branch(name, module, names)
        for place in weights_of(self.model):
            plain = self._plain(place)
            masked = place.masked
            if masked is not None:
                names[plain.key] = f"{place.parametrization}.original"
                found = self._masks(place, plain, masked)
            else:
                found = self._plain_masks(place)
            if plain.key in names:
                names.setdefault(f"{plain.key}_orig", names[plain.key])  # torch.nn.utils.prune
            # A module that has something of that name takes it as it is.
            special.update((key, use) for key, use in found if key not in self.open)
        if _only_masks(self.state):
            self.open.clear()  # the weights stay as they are
        # Weights first: masks of plain models are multiplied into them.
        for key in sorted(self.state, key=lambda key: key in special):
            try:
                if key in special:
                    special[key](self.state[key])
                elif key in names:
                    self._fill(names[key], self.state[key])
                else:
                    continue
                self.loaded.add(key)
            except _Misfit as misfit:
                self.wrong[key] = str(misfit)

    def _fill(self, place: str, value: Tensor) -> None:
        target = self.open.get(place)
        if target is None:
            raise _Misfit(f"{place} is filled already")
        _check_shape(value, target)
        self.writes.append(partial(target.copy_, value))
        del self.open[place]

    def _plain(self, place: LayerWeight) -> LayerWeight:
        """The place with the names that it has in a plain model, without second branches."""
        parent, _, child = place.owner.rpartition(".")
        if child == "conv" and isinstance(self.model.get_submodule(parent), SpReConv2d):
            return replace(place, name=parent, owner=parent)
        return place

    def _second_branch(self, name: str, block: SpReConv2d, names: dict[str, str]) -> None:
        """Names of a convolution, its batch norm and its branch, which are one module here."""
        if block.conv.bias is not None:
            names[f"{name}.bias"] = f"{name}.conv.bias"
        for key in block.bn.state_dict():
            names[f"{block.norm_name}.{key}"] = f"{name}.bn.{key}"
        parent, _, child = name.rpartition(".")
        siblings = self.model.get_submodule(parent).children()
        alone = sum(isinstance(module, SpReConv2d) for module in siblings) == 1
        number = child.lstrip("abcdefghijklmnopqrstuvwxyz_")
        dot = f"{parent}." if parent else ""
        for suffix in {number, ""} if alone else {number}:
            names[f"{dot}conv_rep{suffix}.weight"] = f"{name}.conv_rep.weight"
            names[f"{dot}conv_rep{suffix}.mask"] = f"{name}.mask"
            for key in block.bn_rep.state_dict():
                names[f"{dot}bn_rep{suffix}.{key}"] = f"{name}.bn_rep.{key}"

    def _masks(
        self, place: LayerWeight, plain: LayerWeight, masked: MaskedWeight
    ) -> Iterator[tuple[str, Use]]:
        """What the public forms keep beside a weight, for a prepared layer."""
        kept = f"{place.parametrization}.0"
        weight = place.dense
        if isinstance(masked, BestCombination):
            self.open.pop(f"{kept}.combinations")

            def scores(alpha: Tensor) -> None:
                alpha = self._ordered(plain.name, alpha, masked)
                self._fill(f"{kept}.scores", alpha)
                self._fill(f"{kept}.left", alpha != 0)

            yield f"{plain.name}.alpha", scores
            yield f"{plain.name}.index_list", _nothing  # read with the scores
            yield f"{kept}.combinations", _nothing
        elif isinstance(masked, BlockMask):
            assert isinstance(masked.pattern, OneByN)
            n = masked.pattern.n

            def keep(mask: Tensor) -> None:
                mask = self._scaled(mask, weight)
                blocks = as_blocks(mask != 0, n).any(2)
                if not torch.equal(spread_blocks(blocks, mask), mask != 0):
                    raise _Misfit(f"it does not consist of whole 1x{n} blocks")
                self._fill(f"{kept}.keep", blocks)

            yield from _spelled(plain, keep)
        elif isinstance(masked, FixedMask):

            def fix(mask: Tensor) -> None:
                self._fill(f"{kept}.mask", self._scaled(mask, weight) != 0)

            yield from _spelled(plain, fix)

    def _scaled(self, found: Tensor, weight: Tensor) -> Tensor:
        """A mask for a prepared layer, whose own are 0 and 1: other factors go into the weight."""
        mask = _mask_of(found, weight)
        if not ((mask == 0) | (mask == 1)).all():
            factors = torch.where(mask != 0, mask, torch.ones_like(mask))
            self.writes.append(partial(weight.mul_, factors.to(weight.dtype)))
        return mask

    def _plain_masks(self, place: LayerWeight) -> Iterator[tuple[str, Use]]:
        """The same, for a layer that no method has prepared: multiplied into the weight."""
        name, weight = place.name, place.value

        def multiply(mask: Tensor) -> None:
            self.writes.append(partial(weight.mul_, _mask_of(mask, weight).to(weight.dtype)))

        def choose(alpha: Tensor) -> None:
            table = self.state.get(f"{name}.index_list")
            if table is None:
                raise _Misfit("index_list is missing, so what the scores choose is unknown")
            m = table.shape[1]
            if alpha.shape != (weight.numel() // m, table.shape[0]) or weight[0].numel() % m:
                raise _Misfit(
                    f"expected {weight.numel() // m} groups of {table.shape[0]} scores, found "
                    f"shape {tuple(alpha.shape)}"
                )
            pattern = NM(int(table[0].sum()), m)
            kept = (alpha != 0).float() @ table.float() > 0
            multiply(unlines(kept.reshape(lines_of(weight, pattern).shape), weight, pattern))

        yield from _spelled(place, multiply)
        yield f"{name}.alpha", choose
        yield f"{name}.index_list", _nothing

    def _ordered(self, plain: str, alpha: Tensor, masked: BestCombination) -> Tensor:
        """Scores in the order of our combinations."""
        table = self.state.get(f"{plain}.index_list", masked.combinations)
        if table.shape != masked.combinations.shape or alpha.shape != masked.scores.shape:
            raise _Misfit(
                f"expected {tuple(masked.scores.shape)} scores for {masked.pattern}, found "
                f"{tuple(alpha.shape)}"
            )
        order = []
        for row in masked.combinations:
            same = (table.to(row) == row).all(1).nonzero()
            if len(same) != 1:
                raise _Misfit(f"its index_list does not hold each combination of {masked.pattern}")
            order.append(int(same))
        return alpha[:, order]
