"""Calls whose operators are not in the torch table: in their place stands what we or torch write.

Parameters name tensors, as in `torch_samples`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conformance.torch_samples import Function

NORM = nn.RMSNorm(4)
with torch.no_grad():
    NORM.weight.copy_(torch.tensor([0.7, 1.3, -0.4, 2.0]))
MEAN, VARIANCE = torch.tensor([0.3, -1.0, 0.0, 2.0]), torch.tensor([0.5, 2.0, 1.0, 9.0])


def _shifted(z: Tensor) -> Tensor:
    """What shifts of channels in time write: a slice of one tensor over a slice of another."""
    made = torch.zeros_like(z)
    made[:, :-1] = z[:, 1:]
    made[:, -1:, :2] = z[:, :1, 2:]
    return made


def _filled(x: Tensor) -> Tensor:
    made = x.clone()
    made[:, 0] = 0
    made[:, :, 1:3] += 1
    made[:, 1:, -1] = 2.5
    return made


WRITTEN: dict[str, Function] = {
    "aten.adaptive_max_pool1d.default": lambda h: F.adaptive_max_pool1d(h, 4),
    "aten.adaptive_max_pool2d.default": lambda i: (
        F.adaptive_max_pool2d(i, (4, 9)),
        F.adaptive_max_pool2d(i[0], (7, 2)),
    ),
    "aten.adaptive_max_pool3d.default": lambda v: (
        F.adaptive_max_pool3d(v, (2, 3, 7)),
        F.adaptive_max_pool3d(v, 1),
    ),
    "aten.any.default": lambda t, x: ((t & (x > 9)).any(), x.any()),
    "aten.any.dim": lambda t, x: (t.any(1), x.trunc().any(-1, keepdim=True)),
    "aten.any.dims": lambda t: t.any((0, 2)),
    "aten.clamp.Tensor": lambda s, y: (torch.clamp(s, y - 4, y - 2), torch.clamp(s, max=y)),
    "aten.clamp_min.Tensor": lambda s, y: torch.clamp_min(s, y),
    "aten.clamp_max.Tensor": lambda s, y: torch.clamp_max(s, y),
    "aten.col2im.default": lambda i: F.fold(
        F.unfold(i[:, :, :6], (3, 2), stride=(3, 2)) + 1, (6, 8), (3, 2), stride=(3, 2)
    ),
    "aten.copy.default": _shifted,
    "aten.im2col.default": lambda i: (
        F.unfold(i[:, :, :6], (3, 2), stride=(3, 2)),
        F.unfold(i, 3, padding=1, stride=2, dilation=2),
    ),
    "aten.slice_scatter.default": _filled,
    "aten.index.Tensor": lambda x, j: (x[:, j, j - 1], x[j - 2, j], x[torch.tensor([1, 0]), :2]),
    "aten.instance_norm.default": lambda i: (
        F.instance_norm(i, MEAN, VARIANCE, MEAN + 1, VARIANCE, use_input_stats=False),
        F.instance_norm(i, MEAN, VARIANCE, use_input_stats=False, eps=0.1),
    ),
    "aten.max_pool3d_with_indices.default": lambda v: F.max_pool3d(v, 3, 2, 1, return_indices=True)[
        0
    ],
    "aten.pow.Scalar": lambda x: (torch.pow(2.0, x), torch.pow(0.3, x)),
    "aten.std_mean.correction": lambda x: (*torch.std_mean(x), *torch.std_mean(x, 1)),
    "aten.var_mean.correction": lambda x: torch.var_mean(x, (0, 2), correction=0, keepdim=True),
    "aten.sum.default": lambda t: t.sum(),
    "aten.sum.dim_IntList": lambda t: (t.sum(1), t.sum((0, 2), keepdim=True)),
}
"""By the operator that settling has to rewrite."""

_MADE: dict[str, Function] = {
    "__or__.Tensor": lambda t: (t | t.flip(1), t & t.flip(2)),
    "addcdiv.default": lambda x, p: torch.addcdiv(x, x, p, value=0.3),
    "addcmul.default": lambda x, y: torch.addcmul(x, x, y, value=-0.5),
    "all.dim": lambda t: (t.all(1), t.all()),
    "baddbmm.default": lambda b, c: torch.baddbmm(c[:, :4, :3], b, c, beta=0.5, alpha=2.0),
    "cosine_similarity.default": lambda x, y: F.cosine_similarity(x, y, dim=1),
    "fill.Tensor": _filled,
    "glu.default": lambda s: F.glu(s, -1),
    "lerp.Scalar": lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, 0.8)),
    "linalg_norm.default": lambda x: torch.linalg.norm(x, dim=1),
    "logit.default": lambda u: torch.logit(u.abs(), eps=1e-3),
    "logsumexp.default": lambda x: torch.logsumexp(x, (1, 2)),
    "masked_fill.Tensor": lambda x, t: x.masked_fill(t, torch.tensor(-7.0)),
    "nan_to_num.default": lambda s: torch.nan_to_num(s, 0.5, 9.0, -8.0),
    "outer.default": lambda m, n: torch.outer(m[0], n[:, 1]),
    "pairwise_distance.default": lambda x, y: F.pairwise_distance(x, x.flip(1) + y),
    "repeat_interleave.self_int": lambda z: z.repeat_interleave(2, 1),
    "rms_norm.default": lambda x: (NORM(x), F.rms_norm(x, (3, 4), eps=0.1)),
    "rot90.default": lambda i: torch.rot90(i, 1, (2, 3)),
    "rsub.Tensor": lambda x, y: torch.rsub(x, y),
    "sinc.default": lambda x: torch.sinc(x),
    "special_xlogy.default": lambda x, p: torch.special.xlogy(x, p),
    "tensordot.default": lambda b: torch.tensordot(b, b, dims=([2], [2])),
    "var_mean.dim": lambda x: (*torch.var_mean(x, dim=1), *torch.std_mean(x, dim=(1, 2))),
    "where.ScalarOther": lambda t, x: torch.where(t, x, 0.1),
    "where.ScalarSelf": lambda t, x: torch.where(t, 0.1, x),
    "where.Scalar": lambda t: torch.where(t, 1.5, -2.5),
}

FORMULAS: dict[str, Function] = {f"aten.{name}": call for name, call in _MADE.items()}
"""By an operator that torch has a formula for."""
