"""Rows of the accuracy benchmarks that the authors' code trains, out of checkouts.

    NMCOMPILE_CHECKOUTS=CHECKOUTS python -m benchmarks.fashion \\
        --also benchmarks.authors.recipes:recipes

Their layers take the place of the convolutions that our methods choose in the same network, and are
called as their scripts call them. At the end plain convolutions hold the weights that theirs
multiplied with. The search tries the same hyper-parameters for both.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.authors.cases import ONE_BY_N, SPRE, SUBP
from benchmarks.authors.checkouts import functions, module
from benchmarks.authors.theirs import SIX, LbcLoop, lbc_mask
from benchmarks.fashion.rows import KEPT, NM_HIGH, NM_LOW
from benchmarks.recipes import BY_AUTHORS, Recipe, block_recipes, nm_recipes
from nmcompile.errors import InputError
from nmcompile.sparsity import NM, parse_pattern
from nmcompile.train import ASP, Method, OneByN
from nmcompile.train.method import MaskingMethod

CHECKOUTS = "NMCOMPILE_CHECKOUTS"
DECAY = 2e-4  # of pruned weights, by default in all of them


class Theirs(Method):
    """Base: puts layers of theirs in the place of convolutions, and plain ones back at the end."""

    def __init__(self, choose: MaskingMethod, make: Callable[..., Any], **more: Any) -> None:
        self._choose = choose
        self.make = functools.partial(make, **{"bias": False, **more})
        self.convs: dict[str, Any] = {}

    def prepare(self, model: nn.Module, *, arrange: bool = True) -> nn.Module:
        """Exchange the layers that our method would prepare."""
        names = [row.name for row in self._choose.choose(model) if row.skipped is None]
        for name in names:
            self._exchange(model, name)
        return model

    def _exchange(self, model: nn.Module, name: str) -> None:
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Conv2d)
        self.convs[name] = conv = self.make(**_arguments(plain))
        with torch.no_grad():
            conv.weight.copy_(plain.weight)
        self.begin(conv)
        model.set_submodule(name, conv)

    def begin(self, conv: Any) -> None:
        """With the weights that training begins with in it."""

    def weight(self, conv: Any) -> Tensor:
        """What it multiplies with."""
        masked: Tensor = conv.mask * conv.weight
        return masked

    @torch.no_grad()
    def finalize(self, model: nn.Module) -> nn.Module:
        """Plain convolutions."""
        for name, conv in self.convs.items():
            model.set_submodule(name, _plain(conv, self.weight(conv), None))
        return model


def _arguments(conv: nn.Conv2d) -> dict[str, Any]:
    sizes = {"kernel_size": conv.kernel_size[0], "stride": conv.stride[0]}
    return {
        "in_channels": conv.in_channels, "out_channels": conv.out_channels, **sizes,
        "padding": conv.padding[0],
    }  # fmt: skip


def _plain(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    made = nn.Conv2d(**_arguments(conv), bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
    return made


class SrSte(Theirs):
    """aojunzz/NM-sparsity."""

    def __init__(self, root: Path, pattern: NM, decay: float) -> None:
        ops = module(root, "devkit.sparse_ops.sparse_ops", torch___six=SIX)
        ops.Sparse_NHWC.forward.__defaults__ = (decay,)
        super().__init__(ASP(pattern), ops.SparseConv, N=pattern.n, M=pattern.m)

    def weight(self, conv: Any) -> Tensor:
        """Masked."""
        sparse: Tensor = conv.get_sparse_weights()
        return sparse


class Lbc(Theirs):
    """zyxxmu/LBC, with the loop of its script."""

    def __init__(self, root: Path, pattern: NM, end: int) -> None:
        self.loop = LbcLoop(root, pattern.n, pattern.m, 0, end)
        super().__init__(ASP(pattern), self.loop.make)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """How many candidates are left."""
        self.loop.begin(epoch, self.convs.values())

    def on_step(self, decay_scale: float = 1.0) -> None:
        """Remove candidates."""
        self.loop.remove(nn.ModuleList(self.convs.values()))

    def weight(self, conv: Any) -> Tensor:
        """With the candidate that is left."""
        self.on_step()
        masked: Tensor = lbc_mask(conv) * conv.weight
        return masked


class AspOf(Theirs):
    """The ASP layer of zyxxmu/SpRE."""

    def __init__(self, root: Path, pattern: NM) -> None:
        stubs = {"args": {"args": types.SimpleNamespace(N=pattern.n, M=pattern.m)}}
        made = module(root, "utils.conv_type", **stubs)
        super().__init__(ASP(pattern), made.SparseConv_ASP)

    def begin(self, conv: Any) -> None:
        """Choose the mask."""
        conv.set_mask()


class Blocks(Theirs):
    """lmbxmu/1xN, with and without its rearrangement of filters."""

    def __init__(self, root: Path, rearrange: bool) -> None:
        made = module(root, "utils.conv_type", utils__options={"args": None})
        self.rearrange = rearrange
        # They ask for a bias, and freeze it.
        super().__init__(OneByN("1x16", KEPT), made.BlockL1Conv, bias=True)

    def begin(self, conv: Any) -> None:
        """Choose the mask."""
        nn.init.zeros_(conv.bias)
        choose = conv.get_rearr_mask if self.rearrange else conv.get_mask
        choose(1 - KEPT, 16)


class Subp(Theirs):
    """JingyangXiang/SUBP."""

    def __init__(self, root: Path, criterion: str, end: int, decay: float, tau: float) -> None:
        made = module(root, "models.conv_type.regrow_uniform_block_v2")
        super().__init__(OneByN("1x16", KEPT), made.SUBPConv2dV2)
        self.criterion, self.end, self.decay, self.tau = criterion, end, decay, tau

    def begin(self, conv: Any) -> None:
        """Decay what is pruned as soon as its gradient is there, which their loop does next."""
        with contextlib.redirect_stdout(io.StringIO()):
            conv.init_N(16)
            conv.init_prune_schedule("cubic")
            conv.init_prune_rate(1 - KEPT)
            conv.init_prune_criterion(self.criterion)
        conv.tau = self.tau
        conv.weight.register_post_accumulate_grad_hook(lambda _: conv.do_grad_decay(self.decay))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Choose the blocks."""
        with contextlib.redirect_stdout(io.StringIO()):
            for conv in self.convs.values():
                conv.update_epoch(epoch, epochs, 0, self.end)
                conv.update_mask()


class _Pair(nn.Module):
    """A convolution and its branch, each with its batch norm, as in their residual block."""

    def __init__(self, main: Any, norm: nn.BatchNorm2d, branch: Any) -> None:
        super().__init__()
        self.main, self.norm = main, norm
        self.branch, self.norm_rep = branch, nn.BatchNorm2d(norm.num_features)

    def forward(self, x: Tensor) -> Tensor:
        y, weight = self.main(x)
        out: Tensor = self.norm(y) + self.norm_rep(self.branch(x, weight))
        return out


class SpReOf(SrSte):
    """zyxxmu/SpRE over SR-STE: kernels larger than 1x1 get a branch."""

    def __init__(self, root: Path, pattern: NM, decay: float) -> None:
        self.args = types.SimpleNamespace(N=pattern.n, M=pattern.m, conv_type="SparseConv")
        stubs = {"args": {"args": self.args}}
        self.types = module(root, "utils.conv_type", **stubs)
        self.types.Sparse_NHWC.forward.__defaults__ = (decay,)
        self.masks = module(root, "utils.net_utils", **stubs).set_spatial_mask
        Theirs.__init__(self, ASP(pattern), self.types.SparseConv)
        names = ["fuse_bn_tensor", "get_equivalent_kernel_bias"]
        self.fuse = functions(root / "convert.py", names, {"torch": torch})[names[1]]
        self.pairs: dict[str, _Pair] = {}

    def _exchange(self, model: nn.Module, name: str) -> None:
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Conv2d)
        if plain.kernel_size == (1, 1):
            super()._exchange(model, name)
            return
        place = name.rpartition(".")[0]
        norm = model.get_submodule(f"{place}.1")
        assert isinstance(norm, nn.BatchNorm2d)
        main = self.types.SparseRepConv(**_arguments(plain), bias=False)
        with torch.no_grad():
            main.weight.copy_(plain.weight)
        pair = _Pair(main, norm, self.types.SpReConv(**_arguments(plain), bias=False))
        self.pairs[place] = pair
        model.set_submodule(name, pair)
        model.set_submodule(f"{place}.1", nn.Identity())

    def on_step(self, decay_scale: float = 1.0) -> None:
        """Choose the kernel positions of the branches."""
        for pair in self.pairs.values():
            self.masks(pair, self.args)

    @torch.no_grad()
    def finalize(self, model: nn.Module) -> nn.Module:
        """By their conversion."""
        super().finalize(model)
        for place, pair in self.pairs.items():
            weight, bias = self.fuse(pair.main, pair.norm, pair.branch, pair.norm_rep)
            model.set_submodule(f"{place}.0", _plain(pair.main, weight, bias))
        return model


def recipes() -> list[Recipe]:
    """A row beside each of ours that one of the repositories has.

    Raises:
        InputError: the environment does not name a folder with the checkouts.
    """
    folder = Path(os.environ.get(CHECKOUTS, ""))
    repositories = ("aojunzz/NM-sparsity", "zyxxmu/LBC", SPRE, ONE_BY_N, SUBP)
    roots = {name: folder / name.replace("/", "_") for name in repositories}
    missing = [path.name for path in roots.values() if not path.is_dir()]
    if CHECKOUTS not in os.environ or missing:
        raise InputError(
            f"{CHECKOUTS}: expected a folder with clones of {', '.join(repositories)}, called "
            f"owner_name; missing: {', '.join(missing)}"
        )
    own = {r.title: r for r in (*nm_recipes(NM_HIGH), *block_recipes(KEPT))}
    low = {r.title: r for r in nm_recipes(NM_LOW)}
    return [
        *_of_blocks(roots, own),
        *_of_groups(roots, NM_HIGH, own),
        *_of_groups(roots, NM_LOW, low),
    ]


def _row(ours: Recipe, make: Callable[..., Method]) -> Recipe:
    """Theirs has no scale of the branch's norm to search."""
    settings = () if ours.title.startswith("SpRe") else ours.settings
    title = f"{ours.title}{BY_AUTHORS}"
    return Recipe(title, ours.pattern, ours.density, make, ours.one_shot, settings)


def _of_groups(roots: dict[str, Path], name: str, own: dict[str, Recipe]) -> Iterable[Recipe]:
    pattern = parse_pattern(name)
    assert isinstance(pattern, NM)

    def srste(epochs: int, seed: int, *, decay: float = DECAY) -> Method:
        return SrSte(roots["aojunzz/NM-sparsity"], pattern, decay)

    def lbc(epochs: int, seed: int, *, end: float = 0.5) -> Method:
        return Lbc(roots["zyxxmu/LBC"], pattern, int(end * epochs))

    def asp(epochs: int, seed: int) -> Method:
        return AspOf(roots[SPRE], pattern)

    def spre(epochs: int, seed: int, *, decay: float = DECAY) -> Method:
        return SpReOf(roots[SPRE], pattern, decay)

    yield _row(own["SR-STE"], srste)
    yield _row(own["LBC"], lbc)
    yield _row(own["ASP, one-shot"], asp)
    if name == NM_HIGH:
        yield _row(own["SpRe over SR-STE"], spre)


def _of_blocks(roots: dict[str, Path], own: dict[str, Recipe]) -> Iterable[Recipe]:
    def blocks(epochs: int, seed: int, *, rearrange: bool) -> Method:
        return Blocks(roots[ONE_BY_N], rearrange)

    def subp(
        epochs: int, seed: int, *, criterion: str, decay: float = DECAY, tau: float = 1.0
    ) -> Method:
        return Subp(roots[SUBP], criterion, 3 * epochs // 4, decay, tau)

    yield _row(own["1xN, one-shot"], functools.partial(blocks, rearrange=False))
    yield _row(own["1xN rearranged, one-shot"], functools.partial(blocks, rearrange=True))
    for title, criterion in (("SUBP", "L1"), ("SUBP by L2", "L2"), ("SUBP by BPAR", "BPAR")):
        yield _row(own[title], functools.partial(subp, criterion=criterion))
