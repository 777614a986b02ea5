"""Our implementations at work, driven as a user drives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.authors.cases import Case
from benchmarks.authors.setting import (
    DECAY,
    EPOCHS,
    LAYERS,
    Participant,
    branch_weight,
    network,
    sgd,
)
from nmcompile.sparsity import NM
from nmcompile.train import ASP, LBC, SRSTE, SUBP, Method, OneByN, SpRe, SpReConv2d
from nmcompile.train.parametrizations import BestCombination
from nmcompile.train.weights import dense_weight, masked_weight


def method_of(case: Case) -> Method:
    """Our method for a case."""
    only: dict[str, Any] = {"only": list(LAYERS)}
    if case.method == "one by n":
        return OneByN(f"1x{case.n}", case.density, **only)
    if case.method == "subp":
        return SUBP(
            f"1x{case.n}", case.density, criterion=case.criterion, schedule=case.schedule,
            start=case.start, end=case.end, seed=case.seed, **only,
        )  # fmt: skip
    pattern = NM(case.n, case.m)
    if case.method == "lbc":
        return LBC(pattern, case.start, case.end, **only)
    if case.method == "srste flat":
        # Five times the decay of weights that are kept, by their optimizer.
        return SRSTE(pattern, axis="flat", decay=4 * DECAY, **only)
    base = SRSTE(pattern, **only) if case.method in ("srste", "spre") else ASP(pattern, **only)
    return SpRe(pattern, base) if case.method.startswith("spre") else base


class Ours(Participant):
    """Our method on `network()`."""

    def __init__(self, case: Case) -> None:
        self.method = method_of(case)
        self.case = case
        self.model = network()
        self.method.prepare(self.model)
        self.convs: dict[str, Any] = {}
        self.scores: dict[str, Tensor] = {}  # while they decide something
        for name in LAYERS:
            module: Any = self.model.get_submodule(name)
            if isinstance(module, SpReConv2d):
                with torch.no_grad():
                    module.conv_rep.weight.copy_(branch_weight(name))
            self.convs[name] = module
        self.optimizers = [sgd(dict(self.model.named_parameters()))]

    def begin(self, epoch: int) -> None:
        self.method.on_epoch(epoch, EPOCHS)

    def before_step(self) -> None:
        self.method.on_step()

    def masks(self) -> dict[str, Tensor]:
        found = {}
        for name, module in self.convs.items():
            conv = module.conv if isinstance(module, SpReConv2d) else module
            found[name] = conv.weight != 0
            if isinstance(module, SpReConv2d):
                found[f"{name} positions"] = module.mask
            masked = masked_weight(conv)
            if isinstance(masked, BestCombination):
                found[f"{name} left"] = masked.left
        return found

    def weights(self) -> dict[str, Tensor]:
        found = {}
        for name, module in self.convs.items():
            conv = module.conv if isinstance(module, SpReConv2d) else module
            if self.case.method == "apex asp":
                found[f"{name} kept"] = conv.weight
                continue
            found[name] = dense_weight(conv)
            if isinstance(module, SpReConv2d):
                found[f"{name} branch"] = module.conv_rep.weight
            masked = masked_weight(conv)
            if isinstance(masked, BestCombination) and masked.left.sum(1).max() > 1:
                self.scores[f"{name} scores"] = masked.scores * masked.left
        return found | self.scores
