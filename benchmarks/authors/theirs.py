"""The authors' implementations at work, out of checkouts of their repositories.

None of their code is here: what trains is imported from the checkouts, and this file puts it into
the small network, hands it the same weights and calls it as their training scripts do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import types
from collections import abc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.authors.cases import Case
from benchmarks.authors.checkouts import assignment, functions, importable, module
from benchmarks.authors.setting import (
    CHANNELS,
    DECAY,
    EPOCHS,
    LAYERS,
    MOMENTUM,
    RATE,
    Participant,
    branch_weight,
    network,
    sgd,
)
from nmcompile.train.subp import draws

SIX = {"container_abcs": abc}  # what torch._six had


class Theirs(Participant):
    """Base: puts layers of theirs in the place of the block's convolutions."""

    def __init__(self, make: Callable[..., nn.Conv2d], **more: Any) -> None:
        self.model = network()
        self.convs: dict[str, Any] = {}
        for name in LAYERS:
            plain: Any = self.model.get_submodule(name)
            conv = make(CHANNELS, CHANNELS, kernel_size=3, padding=1, **{"bias": False, **more})
            with torch.no_grad():
                conv.weight.copy_(plain.weight)
            self.model.set_submodule(name, conv)
            self.convs[name] = conv
        self.optimizers = [sgd(_trained(self.model))]

    def weights(self) -> dict[str, Tensor]:
        return {name: conv.weight for name, conv in self.convs.items()}

    def masks(self) -> dict[str, Tensor]:
        return {name: conv.mask for name, conv in self.convs.items()}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class SrSte(Theirs):
    """aojunzz/NM-sparsity."""

    def __init__(self, case: Case, root: Path) -> None:
        ops = module(root, "devkit.sparse_ops.sparse_ops", torch___six=SIX)
        super().__init__(functools.partial(ops.SparseConv, N=case.n, M=case.m))

    def masks(self) -> dict[str, Tensor]:
        return {name: conv.get_sparse_weights() != 0 for name, conv in self.convs.items()}


class SrSteFlat(Theirs):
    """AojunZhou/NM-sparsity: along the flattened weight, and its optimizer decays what is pruned.

    That optimizer takes the masked weights alone here: to others of four dimensions it applies
    both of its decays.
    """

    def __init__(self, case: Case, root: Path) -> None:
        ops = module(root, "devkit.sparse_ops.sparse_ops", torch___six=SIX)
        torch_has = importlib.import_module("torch.optim.optimizer")
        with mock.patch.object(torch_has, "required", object(), create=True):
            made = module(root, "devkit.sparse_ops.sparse_optimizer")
        super().__init__(functools.partial(ops.SparseConv, N=case.n, M=case.m))
        rest = _trained(self.model)
        masked = [rest.pop(f"{name}.weight") for name in LAYERS]
        theirs = made.SGD(masked, RATE, momentum=MOMENTUM, weight_decay=DECAY)
        self.optimizers = [sgd(rest), theirs]

    def masks(self) -> dict[str, Tensor]:
        return {name: conv.get_sparse_weights()[1] for name, conv in self.convs.items()}


class LbcLoop:
    """The loop of zyxxmu/LBC's script.

    make: its layer, for the pattern of the arguments.
    """

    def __init__(self, root: Path, n: int, m: int, start: int, end: int) -> None:
        self.args = types.SimpleNamespace(N=n, M=m, k=0, t_i=start, t_f=end)
        root = root / "ResNet"
        self.make = module(root, "utils.conv_type", utils__options={"args": self.args}).NMConv
        script = root / "imagenet.py"
        self._card = assignment(script, "card")
        scope = {"torch": torch, "args": self.args}
        self._remove_alpha = functions(script, ["remove_alpha"], scope)["remove_alpha"]
        self.candidates = math.comb(m, n)

    @property
    def settled(self) -> bool:
        """Whether one candidate is left."""
        return bool(self.args.k >= self.candidates - 1)

    def begin(self, epoch: int, convs: Iterable[Any]) -> None:
        """How many candidates are left; the last ones' scores train no more."""
        if not self.settled:
            scope = {"math": math, "args": self.args, "epoch": epoch}
            self.args.k = self.candidates - eval(
                self._card, scope, {"combinations_num": self.candidates}
            )
        if self.settled:
            for conv in convs:
                conv.alpha.requires_grad = False

    def remove(self, model: nn.Module) -> None:
        """Remove candidates."""
        self._remove_alpha(types.SimpleNamespace(module=model))


def lbc_mask(conv: Any) -> Tensor:
    """What a layer of zyxxmu/LBC keeps, in the shape of its weight."""
    kept = (conv.alpha != 0).to(conv.index_list) @ conv.index_list
    mask: Tensor = kept.reshape(conv.mask_shape).permute(0, 3, 1, 2)
    return mask


class Lbc(Theirs):
    """zyxxmu/LBC, with the loop of its script."""

    def __init__(self, case: Case, root: Path) -> None:
        self.loop = LbcLoop(root, case.n, case.m, case.start, case.end)
        self.scores: dict[str, Tensor] = {}
        super().__init__(self.loop.make)

    def begin(self, epoch: int) -> None:
        self.loop.begin(epoch, self.convs.values())

    def before_step(self) -> None:
        self.loop.remove(self.model)

    def masks(self) -> dict[str, Tensor]:
        found = {}
        for name, conv in self.convs.items():
            found[name] = lbc_mask(conv)
            found[f"{name} left"] = conv.alpha != 0
        return found

    def weights(self) -> dict[str, Tensor]:
        found = super().weights()
        if not self.loop.settled:  # afterwards a score decides nothing
            self.before_step()  # what momentum moved since is removed before it is used
            for name, conv in self.convs.items():
                self.scores[f"{name} scores"] = conv.alpha.detach().clone()
        return found | self.scores


class SpReOf(Participant):
    """zyxxmu/SpRE: its residual block, over SR-STE or ASP."""

    def __init__(self, case: Case, root: Path) -> None:
        self.args = types.SimpleNamespace(
            N=case.n, M=case.m, conv_type="SparseConv", conv_rep_type="SparseRepConv",
            rep_type="SpReConv", bn_type="LearnedBatchNorm", init="kaiming_normal", mode="fan_in",
            nonlinearity="relu", scale_fan=False,
        )  # fmt: skip
        self.asp = case.method == "spre over asp"
        if self.asp:
            self.args.conv_type, self.args.conv_rep_type = "SparseConv_ASP", "SparseRepConv_ASP"
        stubs = {"args": {"args": self.args}}
        resnet = module(root, "models.resnet", **stubs)
        net_utils = module(root, "utils.net_utils", **stubs)
        self.model = network()
        plain = self.model.block
        with contextlib.redirect_stdout(io.StringIO()):
            self.block: Any = resnet.BasicBlock(resnet.get_builder(), CHANNELS, CHANNELS)
        self.model.block = self.block
        self.pairs = {
            f"block.conv{i}": (getattr(self.block, f"conv{i}"), getattr(self.block, f"conv_rep{i}"))
            for i in (1, 2)
        }
        with torch.no_grad():
            for name, (main, branch) in self.pairs.items():
                main.weight.copy_(plain.get_submodule(name[6:]).weight)
                branch.weight.copy_(branch_weight(name))
                branch.mask = nn.Parameter(branch.mask.double(), requires_grad=False)
        self.set_spatial_mask = functools.partial(net_utils.set_spatial_mask, self.model, self.args)
        if self.asp:
            self.set_spatial_mask()
        self.fuse = functions(
            root / "convert.py", ["fuse_bn_tensor", "get_equivalent_kernel_bias"], {"torch": torch}
        )["get_equivalent_kernel_bias"]
        self.optimizers = [sgd(_trained(self.model))]

    def before_step(self) -> None:
        if not self.asp:
            self.set_spatial_mask()

    def masks(self) -> dict[str, Tensor]:
        found = {}
        for name, (main, branch) in self.pairs.items():
            found[name] = main.mask if self.asp else main.get_sparse_weights() != 0
            found[f"{name} positions"] = branch.mask
        return found

    def weights(self) -> dict[str, Tensor]:
        found = {}
        for name, (main, branch) in self.pairs.items():
            found[name], found[f"{name} branch"] = main.weight, branch.weight
        return found

    @torch.no_grad()
    def converted(self) -> dict[str, Tensor]:
        """Their conversion script: a weight and a bias per layer. It changes the model."""
        assert not self.asp  # the script has nothing for it
        found = {}
        for i, (name, (main, branch)) in enumerate(self.pairs.items(), 1):
            norms = (getattr(self.block, f"bn{i}"), getattr(self.block, f"bn_rep{i}"))
            weight, bias = self.fuse(main, norms[0], branch, norms[1])
            found[f"{name}.weight"], found[f"{name}.bias"] = weight, bias
        return found


class Asp(Theirs):
    """The ASP layer of zyxxmu/SpRE."""

    def __init__(self, case: Case, root: Path) -> None:
        stubs = {"args": {"args": types.SimpleNamespace(N=case.n, M=case.m)}}
        made = module(root, "utils.conv_type", **stubs)
        super().__init__(made.SparseConv_ASP)
        for conv in self.convs.values():
            conv.set_mask()


class ApexAsp(Theirs):
    """NVIDIA/apex."""

    def __init__(self, case: Case, root: Path) -> None:
        super().__init__(nn.Conv2d)
        with (
            importable(root, {}),
            mock.patch.object(Tensor, "cuda", lambda self: self),
            mock.patch.object(torch.cuda, "IntTensor", torch.IntTensor),
        ):
            asp = importlib.import_module("apex.contrib.sparsity.asp").ASP
            asp.init_model_for_pruning(
                self.model, verbosity=0, allowed_layer_names=LAYERS, allow_permutation=False
            )
            asp.init_optimizer_for_pruning(self.optimizers[0])
            torch.set_default_dtype(torch.float32)  # it makes all weights that, for their masks
            asp.compute_sparse_masks()
            torch.set_default_dtype(torch.float64)

    def masks(self) -> dict[str, Tensor]:
        return {name: getattr(conv, "__weight_mma_mask") for name, conv in self.convs.items()}

    def weights(self) -> dict[str, Tensor]:
        return {f"{name} kept": conv.weight for name, conv in self.convs.items()}


class OneByN(Theirs):
    """lmbxmu/1xN, with and without its rearrangement of filters."""

    def __init__(self, case: Case, root: Path) -> None:
        made = module(root, "utils.conv_type", utils__options={"args": None})
        # They ask for a bias, and freeze it.
        super().__init__(made.BlockL1Conv, bias=True)
        for conv in self.convs.values():
            nn.init.zeros_(conv.bias)
            choose = conv.get_rearr_mask if case.rearrange else conv.get_mask
            choose(1 - case.density, case.n)
        self.optimizers = [sgd(_trained(self.model))]


class Subp(Theirs):
    """JingyangXiang/SUBP; its draws are made with our noise, so that they can be compared."""

    def __init__(self, case: Case, root: Path) -> None:
        layers = module(root, "models.conv_type.regrow_uniform_block_v2")
        self.case, self.epoch, self.layer = case, 0, 0
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(layers.SUBPConv2dV2)
            for conv in self.convs.values():
                conv.init_N(case.n)
                conv.init_prune_schedule(case.schedule)
                conv.init_prune_rate(1 - case.density)
                conv.init_prune_criterion(case.criterion.upper())

    def begin(self, epoch: int) -> None:
        self.epoch = epoch
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(torch, "multinomial", self._draw),
        ):
            for layer, conv in enumerate(self.convs.values()):
                self.layer = layer
                conv.update_epoch(epoch, EPOCHS, self.case.start, self.case.end)
                conv.update_mask()

    def _draw(self, chances: Tensor, num_samples: int) -> Tensor:
        noise = draws(self.case.seed, self.epoch, self.layer).gumbel(size=tuple(chances.shape))
        return (chances.log() + torch.from_numpy(noise)).topk(num_samples, dim=1).indices

    def after_backward(self) -> None:
        for conv in self.convs.values():
            conv.do_grad_decay(2e-4)  # the default of their script


PARTICIPANTS: dict[str, Callable[[Case, Path], Participant]] = {
    "srste": SrSte,
    "srste flat": SrSteFlat,
    "lbc": Lbc,
    "spre": SpReOf,
    "spre over asp": SpReOf,
    "asp": Asp,
    "apex asp": ApexAsp,
    "one by n": OneByN,
    "subp": Subp,
}
