"""N:M with a second branch that gives kernel positions densities of their own (SpRe)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_weights

from nmcompile.errors import PatternError
from nmcompile.sparsity import Pattern
from nmcompile.train.lbc import LBC
from nmcompile.train.masks import spatial_mask
from nmcompile.train.method import MaskingMethod, Method, PreparedLayer
from nmcompile.train.one_shot import ASP
from nmcompile.train.parametrizations import FixedMask
from nmcompile.train.patterns import nm_pattern
from nmcompile.train.srste import SRSTE
from nmcompile.train.weights import dense_weight, masked_weight, unmask


class SpReConv2d(nn.Module):
    """A masked convolution with its batch norm, and a normalised branch inside its support.

    y = bn(conv(x, w)) + bn_rep(conv(x, w_rep * (w != 0) * mask)), w the masked weight of `conv` and
    `mask` (kh, kw) 0/1. Two such branches add up to one convolution: see `fold_parallel_branches`.
    `norm_name` is what the batch norm was called in the model.
    """

    mask: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, norm_name: str, scale: float) -> None:
        super().__init__()
        self.conv, self.bn, self.norm_name = conv, norm, norm_name
        weight = dense_weight(conv)
        self.conv_rep = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            groups=conv.groups,
            bias=False,
            device=weight.device,
            dtype=weight.dtype,
        )
        # As the authors' code has it: torch's default is 2.4 times smaller, and behind a batch
        # norm a smaller weight learns faster.
        nn.init.kaiming_normal_(self.conv_rep.weight, nonlinearity="relu")
        self.bn_rep = copy.deepcopy(norm)
        self.bn_rep.reset_parameters()
        if self.bn_rep.affine:
            nn.init.constant_(self.bn_rep.weight, scale)
        self.register_buffer("mask", torch.ones_like(weight[0, 0]))

    def second_weight(self, weight: Tensor) -> Tensor:
        """The branch's weight beside a masked main weight."""
        return self.conv_rep.weight * (weight.detach() != 0) * self.mask

    @torch.no_grad()
    def refresh(self, density: float) -> None:
        """Choose the kernel positions anew."""
        self.mask.copy_(spatial_mask(dense_weight(self.conv), density))

    def forward(self, x: Tensor) -> Tensor:
        """Both branches."""
        weight = self.conv.weight
        y: Tensor = self.bn(self.conv._conv_forward(x, weight, self.conv.bias))
        z: Tensor = self.bn_rep(self.conv._conv_forward(x, self.second_weight(weight), None))
        return y + z

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """One plain convolution with a bias that computes what both branches do in eval mode."""
        weight = self.conv.weight
        main = _fuse(weight, self.conv.bias, self.bn)
        second = _fuse(self.second_weight(weight), None, self.bn_rep)
        conv = copy.deepcopy(self.conv)
        unmask(conv)
        conv.weight = nn.Parameter((main[0] + second[0]).to(weight.dtype))
        conv.bias = nn.Parameter((main[1] + second[1]).to(weight.dtype))
        return conv


class SpRe(Method):
    """Train an N:M method with a second branch beside every convolution larger than 1x1.

    Linear layers and 1x1 convolutions get the base method alone; a model of these is an error.

    N:M gives every kernel position the same density; unstructured pruning does not. The branch
    trains those positions that unstructured pruning of the main weight, to the same density in
    all, would leave denser than the average. They are chosen anew in every step, but once for a
    base whose masks are fixed (ASP): the weights that it prunes stay as they were. The branch's
    weights lie inside the main one's, so the two fold to one convolution of the pattern.

    Source: Zhang et al., TPAMI 2025, section 3.
    """

    def __init__(
        self,
        pattern: Pattern | str,
        base: type[SRSTE | ASP | LBC] | MaskingMethod = SRSTE,
        *,
        scale: float = 1.0,
        norms: Mapping[str, str] | None = None,
    ) -> None:
        """Set the method of the main branch.

        Args:
            pattern: N:M.
            base: the method, or its class where that needs nothing but the pattern; it says which
                layers are prepared.
            scale: what the second branch's batch norm starts with as weight; 0 leaves the function
                of a trained model as it is.
            norms: for models that torch.fx cannot trace: the name of the batch norm directly
                behind each convolution, and behind nothing else.

        Raises:
            PatternError: the pattern is not N:M, or is not the base's.
        """
        made = base(pattern) if isinstance(base, type) else base
        self.pattern = nm_pattern(pattern, None, "SpRe")
        if made.pattern != self.pattern:
            raise PatternError(
                f"SpRe: expected a base for {self.pattern}, found {type(made).__name__} for "
                f"{made.pattern}"
            )
        self.base, self.scale, self.norms = made, scale, norms
        self._blocks: list[SpReConv2d] = []

    def prepare(self, model: nn.Module, *, arrange: bool = True) -> nn.Module:
        """As `Method.prepare`; convolutions get their branch where a batch norm follows them.

        Raises:
            PatternError: as there, or no convolution can have a branch.
        """
        # All that can fail comes before the model is changed.
        chosen = self.base.choose(model)
        modules = dict(model.named_modules())
        self._refuse_flat(modules, chosen)
        norms = _norms_behind(model) if self.norms is None else dict(self.norms)
        obstacles: dict[str, str | None] = {}
        for row in chosen:
            if row.skipped is None:
                free = [name for name, why in obstacles.items() if why is None]
                obstacles[row.name] = _obstacle(modules, row.name, norms, {norms[n] for n in free})
        if all(obstacles.values()):
            reasons = [(row.name, row.skipped or obstacles[row.name]) for row in chosen]
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons[:4])
            raise PatternError(f"SpRe: no layer can have a second branch ({why})")
        before = {id(parameter) for parameter in model.parameters()}
        self.base.prepare(model, arrange=arrange)
        self._blocks.clear()
        rows = []
        for row in self.base.layers:
            if row.skipped is None:
                note = obstacles[row.name] or self._branch(model, row.name, norms[row.name])
                row = replace(row, note="; ".join(filter(None, (note, row.note))))
            rows.append(row)
        self.layers = tuple(rows)
        self._refresh(self._blocks)
        self._watch(model, before)
        return model

    def _refuse_flat(
        self, modules: Mapping[str, nn.Module], chosen: Sequence[PreparedLayer]
    ) -> None:
        """Refuse a model in which no layer has several kernel positions to choose from."""
        names = [row.name for row in chosen if row.skipped is None]
        if all(_flat(modules.get(name)) for name in names):
            base = type(self.base).__name__
            raise PatternError(
                f"SpRe: expected a convolution whose kernel is larger than 1x1, found {names[0]}"
                f"{f' and {len(names) - 1} more' if names[1:] else ''}, matrix products and 1x1 "
                "kernels: a second branch trains some positions of a kernel, and these have one; "
                f"train them with {base}('{self.pattern}')"
            )

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """The base's."""
        self.base.on_epoch(epoch, epochs)

    def on_step(self, decay_scale: float = 1.0) -> None:
        """The base's, and the choice of kernel positions."""
        super().on_step(decay_scale)
        self.base.on_step(decay_scale)
        self._refresh([b for b in self._blocks if not isinstance(masked_weight(b.conv), FixedMask)])

    def _refresh(self, blocks: Iterable[SpReConv2d]) -> None:
        for block in blocks:
            block.refresh(self.pattern.n / self.pattern.m)

    def _settle(self, model: nn.Module) -> None:
        self.base._settle(model)

    def _collapse(self, model: nn.Module) -> dict[str, Pattern]:
        """Branches and their batch norms become one convolution."""
        patterns: dict[str, Pattern] = {}
        for name, block in list(model.named_modules()):
            if isinstance(block, SpReConv2d):
                masked = masked_weight(block.conv)
                assert masked is not None
                patterns[name] = masked.pattern
                model.set_submodule(name, block.folded())
        return patterns

    def _branch(self, model: nn.Module, name: str, norm: str) -> str:
        """Put a branch beside a convolution; returns what happened."""
        conv, behind = model.get_submodule(name), model.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
        block = SpReConv2d(conv, behind, norm, self.scale)
        self._blocks.append(block)
        model.set_submodule(name, block)
        model.set_submodule(norm, nn.Identity())
        return f"a second branch; {norm} has moved into it"


def _flat(module: nn.Module | None) -> bool:
    """Whether a layer has one position, as matrix products have; None is one of attention."""
    size = tuple(module.kernel_size) if isinstance(module, nn.Conv1d | nn.Conv2d) else ()
    return all(length == 1 for length in size)


def _obstacle(
    modules: Mapping[str, nn.Module], name: str, norms: Mapping[str, str], taken: Collection[str]
) -> str | None:
    """Why a layer cannot have a second branch, or None; other layers have the norms in `taken`."""
    conv, norm = modules.get(name), norms.get(name)
    if conv is None or isinstance(conv, nn.Linear):
        return "no second branch: a matrix product has no kernel positions to choose from"
    if not isinstance(conv, nn.Conv2d):
        return "no second branch: it is no two-dimensional convolution"
    if _flat(conv):
        return "no second branch: its kernel is 1x1"
    if norm is None:
        return "no second branch: no batch norm follows it directly, and it alone"
    if norm in taken:
        return f"no second branch: {norm} is that of another convolution"
    behind = modules.get(norm)
    if not isinstance(behind, nn.BatchNorm2d) or behind.running_var is None:
        return f"no second branch: {norm} is no batch norm with running statistics"
    return None


def _fuse(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the batch norm behind it, in float64."""
    running = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, scale, shift = (None if t is None else t.double() for t in running)
    assert mean is not None and var is not None
    fused = fuse_conv_bn_weights(
        weight.double(), None if bias is None else bias.double(), mean, var, norm.eps, scale, shift
    )
    return fused[0].detach(), fused[1].detach()


def _norms_behind(model: nn.Module) -> dict[str, str]:
    """For each convolution the batch norm that reads it, where both are called once and alone."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise PatternError(
            f"SpRe: torch.fx cannot trace {type(model).__name__} to find the batch norm behind "
            f"each convolution ({error}); name them with norms={{'conv1': 'bn1', ...}}"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    counts: dict[str, int] = {}
    for node in calls:
        counts[str(node.target)] = counts.get(str(node.target), 0) + 1
    found = {}
    for node in calls:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module":
            continue
        conv, norm = str(node.target), str(users[0].target)
        both = isinstance(model.get_submodule(conv), nn.Conv2d) and isinstance(
            model.get_submodule(norm), nn.BatchNorm2d
        )
        if both and counts[conv] == counts[norm] == 1:
            found[conv] = norm
    return found
