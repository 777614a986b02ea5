"""Reading checkpoints of the methods' public implementations."""

from __future__ import annotations

import copy
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nmcompile.errors import ModelError
from nmcompile.sparsity import NM, OneByN
from nmcompile.train.masks import as_blocks, lines_of, spread_blocks, unlines
from nmcompile.train.method import Method, Weighted, dense_weight, masked_weight
from nmcompile.train.parametrizations import BestCombination, BlockMask, FixedMask, MaskedWeight
from nmcompile.train.spre import SpReConv2d

State = dict[str, Tensor]
NESTED = ("state_dict", "model_state_dict", "model", "net")  # what holds the tensors, first found
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
COUNTER = ".num_batches_tracked"  # of batch norms: absent from older files, of no consequence
SHOWN = 6  # names in a message
BITS = 8  # of a mask in one byte
ASP_MASK, ASP_PRUNED = "__weight_mma_mask", "__weight_mma_pruned_p"  # of NVIDIA's apex


@dataclass(frozen=True)
class CheckpointReport:
    """What `load_checkpoint` found.

    method: the recognised one: "SpRe over LBC", "SpRe over SR-STE or ASP", "LBC", "SUBP or 1xN"
        (masks), "ASP" (masks under apex's names), "MaskLLM" (masks without weights), or "SR-STE or
        dense" (weights only, which do not say).
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
    multiply it (MaxQ); files of masks alone, as bits too (MaskLLM's `.npz`); apex's ASP masks;
    `alpha` and `index_list` beside a weight (LBC); `conv_rep` and `bn_rep` beside a convolution and
    its batch norm (SpRe); and what prepared models save themselves.

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
    state = _tensors(source)
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


def _tensors(source: str | os.PathLike[str] | Mapping[str, Any]) -> State:
    """The tensors of a checkpoint by their plain names."""
    found: Any = source
    if not isinstance(source, Mapping):
        try:
            found = _read(Path(source))
        except OSError as error:
            raise ModelError(f"cannot read {source}: {error.strerror or error}") from error
        except (
            *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError),
            *(zipfile.BadZipFile, zlib.error),
        ) as error:
            raise ModelError(
                f"{source}: expected a checkpoint of tensors, found something else "
                f"({str(error).splitlines()[0]}); in the environment that wrote it, save "
                "model.state_dict() alone"
            ) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(v, Tensor) for v in found.values()):
        shown = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ModelError(f"expected a state dict in the checkpoint, found {shown or 'nothing'}")
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read(path: Path) -> Any:
    """What a file holds."""
    if path.suffix != ".npz":
        return torch.load(path, map_location="cpu", weights_only=True)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


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
    if any(key.endswith(ASP_MASK) for key in state):
        return "ASP"
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
        special: dict[str, Callable[[Tensor], None]] = {}
        for key in self.open:
            names[key] = key
        for name, module in self.model.named_modules():
            if isinstance(module, SpReConv2d):
                self._second_branch(name, module, names)
            masked = masked_weight(module)
            if masked is not None:
                plain = name.removesuffix(".conv") if self._is_branch(name) else name
                names[f"{plain}.weight"] = f"{name}.parametrizations.weight.original"
                special.update(self._masks(plain, name, module, masked))
            elif isinstance(module, Weighted):
                # A module that has a mask of its own takes it as it is.
                own = self._plain_masks(name, module)
                special.update((key, use) for key, use in own if key not in self.open)
        for key in [key for key in special if key.endswith(".mask")]:
            layer = key.removesuffix(".mask")
            special.setdefault(f"{layer}.weight.mask", special[key])
            special.setdefault(f"{layer}.{ASP_MASK}", special[key])
            special.setdefault(f"{layer}.{ASP_PRUNED}", lambda weight: None)  # what it took away
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

    def _is_branch(self, name: str) -> bool:
        parent, _, child = name.rpartition(".")
        return child == "conv" and isinstance(self.model.get_submodule(parent), SpReConv2d)

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
        self, plain: str, name: str, module: nn.Module, masked: MaskedWeight
    ) -> Iterator[tuple[str, Callable[[Tensor], None]]]:
        """What the public forms keep beside a weight, for a prepared layer."""
        place = f"{name}.parametrizations.weight.0"
        weight = dense_weight(module)
        if isinstance(masked, BestCombination):
            self.open.pop(f"{place}.combinations")

            def scores(alpha: Tensor) -> None:
                alpha = self._ordered(plain, alpha, masked)
                self._fill(f"{place}.scores", alpha)
                self._fill(f"{place}.left", alpha != 0)

            yield f"{plain}.alpha", scores
            yield f"{plain}.index_list", lambda table: None  # read with the scores
            yield f"{place}.combinations", lambda table: None
        elif isinstance(masked, BlockMask):
            assert isinstance(masked.pattern, OneByN)
            n = masked.pattern.n

            def keep(mask: Tensor) -> None:
                mask = self._scaled(mask, weight)
                blocks = as_blocks(mask != 0, n).any(2)
                if not torch.equal(spread_blocks(blocks, mask), mask != 0):
                    raise _Misfit(f"it does not consist of whole 1x{n} blocks")
                self._fill(f"{place}.keep", blocks)

            yield f"{plain}.mask", keep
        elif isinstance(masked, FixedMask):

            def fix(mask: Tensor) -> None:
                self._fill(f"{place}.mask", self._scaled(mask, weight) != 0)

            yield f"{plain}.mask", fix

    def _scaled(self, found: Tensor, weight: Tensor) -> Tensor:
        """A mask for a prepared layer, whose own are 0 and 1: other factors go into the weight."""
        mask = _mask_of(found, weight)
        if not ((mask == 0) | (mask == 1)).all():
            factors = torch.where(mask != 0, mask, torch.ones_like(mask))
            self.writes.append(partial(weight.mul_, factors.to(weight.dtype)))
        return mask

    def _plain_masks(
        self, name: str, module: Weighted
    ) -> Iterator[tuple[str, Callable[[Tensor], None]]]:
        """The same, for a layer that no method has prepared: multiplied into the weight."""
        weight = module.weight

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

        yield f"{name}.mask", multiply
        yield f"{name}.alpha", choose
        yield f"{name}.index_list", lambda table: None

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
