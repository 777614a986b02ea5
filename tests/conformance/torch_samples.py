"""Calls that show what a row of the torch table is believed in for: each has the row's operator.

A function's parameters name tensors of `TENSORS`; `z` is one of the dtype that is asked for.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers PT2E's operators
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Any]
aten = torch.ops.aten
pt2e: Any = torch.ops.quantized_decomposed

DOUBLE = torch.tensor([0.031, 0.0172, 0.29, 0.113], dtype=torch.float64)
SCALE, ZERO = torch.tensor(0.0271), torch.tensor(-3)
SCALES = torch.tensor([0.031, 0.0172, 0.29, 0.113])
POINTS = torch.tensor([3, 0, 7, 1], dtype=torch.uint8)
# Of its own dtypes torch's differences wrap around, which nobody means: 0 has none.
ZEROS = {
    dtype: torch.zeros(4, dtype=dtype)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)
}

ZERO_REFUSED = ("floor_divide", "remainder")


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2


def _special(*shape: int) -> Tensor:
    found = _random(*shape)
    rare = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 2.5, -3.0])
    found.view(-1)[: len(rare)] = rare
    return found


def _typed(dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return _special(2, 3, 4).to(dtype)
    low, high = (0, 2) if dtype is torch.bool else (0 if dtype is torch.uint8 else -9, 10)
    made = torch.randint(low, high, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    return made.to(dtype)


TENSORS: dict[str, Tensor] = {
    # Numbers, and the special ones.
    "x": _random(2, 3, 4),
    "y": _random(3, 1) + 3,
    "s": _special(2, 3, 4),
    "p": _random(2, 3, 4).abs() + 0.1,  # positive
    "u": _random(2, 3, 4).tanh() * 0.99,  # between -1 and 1
    # Images and sequences.
    "h": _random(2, 4, 9),
    "i": _random(2, 4, 7, 8),
    "v": _random(1, 4, 5, 6, 4),
    "o": _random(1, 4, 1, 1),
    # Matrices.
    "m": _random(4, 5),
    "n": _random(5, 3),
    "b": _random(2, 4, 5),
    "c": _random(2, 5, 3),
    # Attention.
    "q": _random(1, 2, 3, 4),
    "k": _random(1, 2, 5, 4),
    "w": _random(1, 2, 5, 6),
    # Truth, and positions.
    "t": _random(2, 3, 4) > 0,
    "j": torch.tensor([[1, 0, 2], [2, 2, 0]]),
}


def tensors_of(parameter: str, dtype: torch.dtype) -> Tensor:
    """The tensor of a parameter's name; `z` and `a`, which broadcasts to it, have a dtype."""
    if parameter == "z":
        return _typed(dtype)
    if parameter == "a":
        # Nothing divides by it that is zero.
        return torch.ones((), dtype=dtype) if dtype is torch.bool else _divisor(dtype)
    return TENSORS[parameter]


def _divisor(dtype: torch.dtype) -> Tensor:
    made = torch.tensor([[3.0], [2.0], [5.0]])
    signed = made if dtype is torch.uint8 else made * torch.tensor([[1.0], [-1.0], [1.0]])
    return signed.to(dtype)


def _unary(parameter: str, names: str) -> dict[str, tuple[Function, ...]]:
    """Operators of one tensor, called as they are."""
    found: dict[str, tuple[Function, ...]] = {}
    for name in names.split():
        function = getattr(aten, name).default
        call: dict[str, Function] = {
            "s": lambda s, f=function: f(s),
            "p": lambda p, f=function: f(p),
            "u": lambda u, f=function: f(u),
            "z": lambda z, f=function: f(z),
        }
        found[f"aten.{name}.default"] = (call[parameter],)
    return found


def _binary(names: str) -> dict[str, tuple[Function, ...]]:
    found: dict[str, tuple[Function, ...]] = {}
    for name in names.split():
        base, overload = (name + ".default").split(".")[:2]
        f = getattr(getattr(aten, base), overload)
        if overload == "Scalar":
            # A truth value is held against 0 and 1: others are refused.
            found[f"aten.{name}"] = (
                lambda z, f=f: f(z, 1 if z.dtype == torch.bool else 2),
                lambda z, f=f: f(z, 0 if z.dtype == torch.bool else 3),
            )
        else:
            calls: tuple[Function, ...] = (lambda z, a, f=f: f(z, a), lambda z, f=f: f(z, z))
            # Whole numbers have no quotient by zero.
            found[f"aten.{base}.{overload}"] = calls[: 1 if base in ZERO_REFUSED else 2]
    return found


w1, w2, w3 = _random(6, 2, 3), _random(6, 2, 3, 2), _random(6, 2, 2, 3, 2)
full1, full2, full3 = _random(6, 4, 3), _random(6, 4, 3, 3), _random(6, 4, 3, 3, 3)
t1, t2 = _random(4, 3, 3), _random(4, 3, 3, 2)
bias6, mean4, var4, weight4 = _random(6), _random(4), _random(4).abs() + 0.1, _random(4)
w5 = _random(5, 4)
fixed_indices = torch.tensor([2, 0, 1, 1])

SAMPLES: dict[str, tuple[Function, ...]] = {
    **_unary("z", "abs neg sign square bitwise_not logical_not"),
    **_unary("s", """ceil celu cos erf exp expm1 floor hardsigmoid hardswish hardtanh leaky_relu
        log log10 log1p log2 reciprocal relu relu6 round rsqrt sigmoid silu sin softplus
        sqrt tanh trunc mish log_sigmoid elu isfinite isinf isnan atan
        asinh sinh cosh"""),
    **_unary("u", "acos asin atanh tan gelu"),
    "aten.acosh.default": (lambda p: torch.acosh(p + 1),),
    "aten.prelu.default": (
        lambda i: F.prelu(i, weight4), lambda i: F.prelu(i, torch.tensor([0.2])),
    ),
    "aten.threshold.default": (lambda s: F.threshold(s, 0.1, 20.0),),
    "aten.clamp.default": (
        lambda x: torch.clamp(x, 1, 3), lambda x: torch.clamp(x, min=2),
        lambda x: torch.clamp(x, max=2),
    ),
    "aten.clamp_min.default": (lambda x: torch.clamp_min(x, 2),),
    "aten.clamp_max.default": (lambda x: torch.clamp_max(x, 2),),
    **_binary("""add.Tensor sub.Tensor rsub.Scalar add.Scalar sub.Scalar mul.Tensor mul.Scalar
        div.Tensor div.Scalar floor_divide remainder.Scalar remainder.Tensor maximum minimum
        eq.Scalar eq.Tensor ne.Scalar ne.Tensor ge.Scalar ge.Tensor gt.Scalar gt.Tensor le.Scalar
        le.Tensor lt.Scalar lt.Tensor logical_and logical_or logical_xor bitwise_and.Tensor
        bitwise_or.Tensor bitwise_xor.Tensor"""),
    "aten.pow.Tensor_Scalar": (
        lambda s: s**2, lambda s: s**3, lambda p: p**0.5, lambda p: p**-1.5, lambda p: p**0,
    ),
    "aten.pow.Tensor_Tensor": (lambda p, x: p**x,),
    "aten.where.self": (
        lambda t, s, x: torch.where(t, s, x), lambda t, y: torch.where(t, y, torch.zeros(()))
    ),
    "aten.masked_fill.Scalar": (
        lambda z, t: z.masked_fill(t, 3), lambda x, t: x.masked_fill(t, -torch.inf)
    ),
    # Convolutions and products.
    "aten.conv1d.default": (
        lambda h: F.conv1d(h, w1 * h.mean(), bias6, 2, 1, 2, 2),
        lambda h: F.conv1d(h, full1 * h.mean()),
    ),
    "aten.conv1d.padding": (
        lambda h: F.conv1d(h, full1 * h.mean(), bias6, padding="same"),
    ),
    "aten.conv2d.default": (
        lambda i: F.conv2d(i, w2, bias6, (2, 1), (1, 2), (1, 2), 2), lambda i: F.conv2d(i, full2)
    ),
    "aten.conv2d.padding": (
        lambda i: F.conv2d(i, w2, bias6, padding="same", groups=2),
        lambda i: F.conv2d(i, full2, padding="valid", stride=2),
    ),
    "aten.conv3d.default": (
        lambda v: F.conv3d(v, w3 * v.mean(), bias6, (2, 1, 1), (1, 0, 1), (1, 2, 1), 2),
        lambda v: F.conv3d(v, full3 * v.mean()),
    ),
    "aten.conv3d.padding": (lambda v: F.conv3d(v, full3 * v.mean(), bias6, padding="same"),),
    "aten.convolution.default": (
        lambda h: aten.convolution(h, w1, bias6, [2], [1], [2], False, [0], 2),
        lambda i: aten.convolution(i, w2, None, [2, 1], [1, 0], [1, 1], False, [0, 0], 2),
        lambda v: aten.convolution(
            v, w3, bias6, [1, 1, 2], [1, 0, 0], [1, 1, 1], False, [0, 0, 0], 2
        ),
        lambda h: aten.convolution(h, t1, None, [2], [1], [1], True, [1], 2),
        lambda i: aten.convolution(i, t2, None, [2, 1], [1, 0], [1, 1], True, [1, 0], 1),
    ),
    "aten.conv_transpose1d.default": (
        lambda h: F.conv_transpose1d(h, t1 * h.mean(), None, 2, 1, 1, 2),
        lambda h: F.conv_transpose1d(h, t1 * h.mean(), bias6[:3], 1, 0, 0, 1, 2),
    ),
    "aten.conv_transpose2d.input": (
        lambda i: F.conv_transpose2d(i, t2 * i.mean(), None, (2, 1), (1, 0), (1, 0), 2),
        lambda i: F.conv_transpose2d(i, t2 * i.mean(), bias6[:3], 1, 0, 0, 1, 2),
    ),
    "aten.linear.default": (
        lambda x: F.linear(x, w5),
        lambda x: F.linear(x, w5, bias6[:5]),
    ),
    "aten.matmul.default": (
        lambda m, n: m @ n, lambda b, c: b @ c, lambda b, n: b @ n, lambda q, k: q @ k.mT,
        lambda m: m @ m[0],
    ),
    "aten.mm.default": (lambda m, n: torch.mm(m, n),),
    "aten.bmm.default": (lambda b, c: torch.bmm(b, c),),
    "aten.addmm.default": (
        lambda m, n: torch.addmm(bias6[:3], m, n), lambda m, n: torch.addmm(m[:, :3], m, n)
    ),
    "aten.baddbmm.default": (lambda b, c: torch.baddbmm(b[:, :, :3], b, c),),
    "aten.einsum.default": (
        lambda b, c: torch.einsum("bij,bjk->bki", b, c), lambda m: torch.einsum("ij->j", m),
        lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k),
    ),
    # Pooling.
    "aten.avg_pool1d.default": (
        lambda h: F.avg_pool1d(h, 3, 2, 1), lambda h: F.avg_pool1d(h, 2, 2, 1, False, False),
        lambda h: F.avg_pool1d(h, 4, 3, 1, True), lambda h: F.avg_pool1d(h, 4, 3, 1, True, False),
    ),
    "aten.avg_pool2d.default": (
        lambda i: F.avg_pool2d(i, (3, 2), (2, 1), (1, 0)), lambda i: F.avg_pool2d(i, 3, 2, 1, True),
        lambda i: F.avg_pool2d(i, 3, 2, 1, False, False),
        lambda i: F.avg_pool2d(i, 3, 2, 1, True, False),
    ),
    "aten.avg_pool3d.default": (
        lambda v: F.avg_pool3d(v, 2, 1, 1), lambda v: F.avg_pool3d(v, 3, 2, 1, True),
        lambda v: F.avg_pool3d(v, (3, 2, 2), 2, (1, 0, 1), False, False),
        lambda v: F.avg_pool3d(v, 3, 2, 1, True, False),
    ),
    "aten.max_pool1d.default": (
        lambda h: F.max_pool1d(h, 3, 2, 1), lambda h: F.max_pool1d(h, 2, 2, 0, 2),
        lambda h: F.max_pool1d(h, 4, 3, 1, 1, True),
    ),
    "aten.max_pool2d.default": (
        lambda i: F.max_pool2d(i, (3, 2), (2, 1), (1, 0)), lambda i: F.max_pool2d(i, 2, 1, 0, 2),
        lambda i: F.max_pool2d(i, 3, 2, 1, 1, True),
    ),
    "aten.max_pool3d.default": (
        lambda v: F.max_pool3d(v, 2), lambda v: F.max_pool3d(v, 2, 1, 1, 2),
        lambda v: F.max_pool3d(v, 3, 2, 1, 1, True),
    ),
    "aten.adaptive_avg_pool1d.default": (
        lambda h: F.adaptive_avg_pool1d(h, 3), lambda h: F.adaptive_avg_pool1d(h, 4),
        lambda h: F.adaptive_avg_pool1d(h, 1),
    ),
    "aten.adaptive_avg_pool2d.default": (
        lambda i: F.adaptive_avg_pool2d(i, (3, 5)), lambda i: F.adaptive_avg_pool2d(i, 1),
        lambda i: F.adaptive_avg_pool2d(i, (9, 10)),
    ),
    "aten.adaptive_avg_pool3d.default": (
        lambda v: F.adaptive_avg_pool3d(v, (2, 4, 3)), lambda v: F.adaptive_avg_pool3d(v, 1),
    ),
    # Normalisation.
    "aten._native_batch_norm_legit_no_training.default": (
        lambda i: aten._native_batch_norm_legit_no_training(
            i, weight4, mean4, mean4, var4, 0.1, 0.01
        )[0],
    ),
    "aten.instance_norm.default": (
        lambda i: F.instance_norm(i, weight=weight4, bias=mean4), lambda h: F.instance_norm(h),
    ),
    "aten.group_norm.default": (
        lambda i: F.group_norm(i, 2, weight4, mean4, 0.1),
        lambda h: F.group_norm(h, 4, weight4, mean4),
    ),
    "aten.layer_norm.default": (
        lambda x: F.layer_norm(x, (4,), weight4, mean4), lambda x: F.layer_norm(x, (3, 4)),
        lambda i: F.layer_norm(i, (7, 8), eps=0.1),
    ),
    "aten.softmax.int": (lambda x: x.softmax(1), lambda i: i.softmax(-1), lambda s: s.softmax(0)),
    "aten.log_softmax.int": (lambda x: x.log_softmax(1), lambda i: i.log_softmax(-1)),
    "aten.scaled_dot_product_attention.default": (
        lambda q, k, w: F.scaled_dot_product_attention(q, k, w),
        lambda q, k, w: F.scaled_dot_product_attention(q, k, w, is_causal=True),
        lambda q, k, w: F.scaled_dot_product_attention(q, k, w, scale=0.3),
    ),
    "aten.pixel_shuffle.default": (lambda i: F.pixel_shuffle(i, 2),),
    "aten.pixel_unshuffle.default": (lambda i: F.pixel_unshuffle(i[:, :, :6], 2),),
    "aten.channel_shuffle.default": (lambda i: F.channel_shuffle(i, 2),),
    "aten.embedding.default": (lambda j: F.embedding(j, w5), lambda j: F.embedding(j, w5, 0)),
    # Reductions.
    "aten.mean.default": (lambda x: x.mean(),),
    "aten.mean.dim": (
        lambda x: x.mean(1), lambda i: i.mean((2, -1), keepdim=True), lambda s: s.mean(-1)
    ),
    "aten.sum.default": (lambda x: x.sum(),),
    "aten.sum.dim_IntList": (
        lambda x: x.sum(1), lambda i: i.sum((2, -1), keepdim=True), lambda s: s.sum(-1)
    ),
    "aten.max.default": (lambda x: x.max(), lambda s: s.max()),
    "aten.min.default": (lambda x: x.min(), lambda s: s.min()),
    "aten.amax.default": (
        lambda x: x.amax(1), lambda s: s.amax((0, -1), keepdim=True), lambda s: s.amax()
    ),
    "aten.amin.default": (
        lambda x: x.amin(1), lambda s: s.amin((0, -1), keepdim=True), lambda s: s.amin()
    ),
    "aten.prod.default": (lambda x: x.prod(),),
    "aten.argmax.default": (
        lambda x: x.argmax(1), lambda x: x.argmax(-1, keepdim=True), lambda x: x.argmax(),
        lambda x: x.trunc().argmax(1),
    ),
    "aten.argmin.default": (
        lambda x: x.argmin(1), lambda x: x.argmin(-1, keepdim=True), lambda x: x.argmin(),
        lambda x: x.trunc().argmin(1),
    ),
    "aten.var.correction": (
        lambda x: x.var(1, correction=1), lambda x: x.var((0, 2), correction=0, keepdim=True),
        lambda x: x.var(), lambda x: x.var(-1, correction=2),
    ),
    "aten.std.correction": (
        lambda x: x.std(1, correction=1), lambda x: x.std((0, 2), correction=0, keepdim=True),
        lambda x: x.std(),
    ),
    "aten.linalg_vector_norm.default": (
        lambda x: torch.linalg.vector_norm(x), lambda x: torch.linalg.vector_norm(x, 1, 1),
        lambda x: torch.linalg.vector_norm(x, 3, (0, -1), True),
        lambda x: torch.linalg.vector_norm(x, torch.inf, -1),
    ),
    "aten.norm.ScalarOpt_dim": (
        lambda x: aten.norm.ScalarOpt_dim(x, 2, [1]),
        lambda x: aten.norm.ScalarOpt_dim(x, 1, [0, -1], True),
    ),
    # Elements moved.
    "aten.alias.default": (lambda z: aten.alias(z),),
    "aten.clone.default": (lambda z: z.clone(),),
    "aten.detach.default": (lambda z: z.detach(),),
    "aten._to_copy.default": tuple(
        lambda z, d=d: aten._to_copy(z, dtype=d) for d in (torch.float32, torch.int32)
    ),
    "aten.type_as.default": (lambda z, x: z.type_as(x), lambda z, j: z.type_as(j)),
    "aten.cat.default": (
        lambda z: torch.cat([z, z.flip(0)], 1),
        lambda z: torch.cat([z, z, z], -1)),
    "aten.concat.default": (lambda z: torch.concat([z, z], -2),),
    "aten.stack.default": (
        lambda z: torch.stack([z, z], 1),
        lambda z: torch.stack([z, z], -1),
    ),
    "aten.split.Tensor": (lambda z: torch.split(z, 2, 1), lambda z: torch.split(z, 3, -1)),
    "aten.split_with_sizes.default": (lambda z: torch.split(z, [1, 3], -1),),
    "aten.unbind.int": (lambda z: torch.unbind(z, 1), lambda z: torch.unbind(z, -1)),
    "aten.select.int": (lambda z: z[:, 1], lambda z: z[..., 2]),
    "aten.slice.Tensor": (
        lambda z: z[:, 1:], lambda z: z[:, :, ::2], lambda z: z[-1:], lambda z: z[..., -3:-1],
    ),
    "aten.expand.default": (
        lambda z: z[:, :1].expand(2, 5, 4), lambda z: z[:, :1].expand(3, -1, 5, -1)
    ),
    "aten.repeat.default": (lambda z: z.repeat(1, 2, 3), lambda z: z.repeat(2, 1, 1, 2)),
    "aten.tile.default": (lambda z: torch.tile(z, (2, 3)), lambda z: torch.tile(z, (2, 1, 1, 2))),
    "aten.permute.default": (lambda z: z.permute(2, 0, 1), lambda z: z.permute(0, -1, 1)),
    "aten.reshape.default": (lambda z: z.reshape(4, -1), lambda z: z.mT.reshape(2, 12)),
    "aten.transpose.int": (lambda z: z.transpose(0, 2), lambda z: z.transpose(-1, -2)),
    "aten.t.default": (lambda z: z[0].t(),),
    "aten.squeeze.default": (lambda z: z[:, :1].squeeze(),),
    "aten.squeeze.dim": (lambda z: z[:, :1].squeeze(1), lambda z: z.squeeze(-1)),
    "aten.squeeze.dims": (lambda z: z[:1, :1].squeeze((0, -2)),),
    "aten.unsqueeze.default": (lambda z: z.unsqueeze(1), lambda z: z.unsqueeze(-1)),
    "aten.flip.default": (lambda z: z.flip(1), lambda z: z.flip((0, -1))),
    "aten.roll.default": (lambda z: z.roll(1, 1), lambda z: z.roll((1, -2), (0, -1))),
    "aten.gather.default": (
        lambda z, j: z[:, :, 0].gather(1, j), lambda z, j: z[:, 0].gather(-1, j)
    ),
    "aten.index_select.default": (
        lambda z: z.index_select(1, fixed_indices), lambda z: z.index_select(-1, fixed_indices)
    ),
    "aten.index.Tensor": (
        lambda z: z[:, fixed_indices], lambda z: z[..., fixed_indices.reshape(2, 2)],
    ),
    "aten.pad.default": (
        lambda i: F.pad(i, (1, 2, 0, 1)), lambda i: F.pad(i, (1, 2, 3, 0), value=2.5),
        lambda i: F.pad(i, (1, 2, 3, 0), "reflect"), lambda i: F.pad(i, (1, 2, 3, 0), "replicate"),
        lambda i: F.pad(i, (1, 2, 3, 0), "circular"), lambda i: F.pad(i, (-1, 2)),
    ),
    "aten.constant_pad_nd.default": (
        lambda i: aten.constant_pad_nd(i, [1, 2, 0, 1]),
        lambda i: aten.constant_pad_nd(i, [1, -2, 3, 1, 0, 2], -1.5),
    ),
    "aten.tril.default": (lambda x: x.tril(), lambda x: x.tril(-1)),
    "aten.triu.default": (lambda x: x.triu(), lambda x: x.triu(2)),
    # Made from nothing; without an input of their own, the dtype is that of the result.
    "aten.arange.default": (lambda x: (x, torch.arange(4), torch.arange(3.0)),),
    "aten.arange.start": (lambda x: (x, torch.arange(2, 7)),),
    "aten.arange.start_step": (lambda x: (x, torch.arange(1, 8, 3), torch.arange(1, 0, -0.25)),),
    "aten.full.default": (lambda z: torch.full((2, 3), 3, dtype=z.dtype),),
    "aten.full_like.default": (lambda z: torch.full_like(z, 2),),
    "aten.ones.default": (lambda z: torch.ones((2, 3), dtype=z.dtype),),
    "aten.zeros.default": (lambda z: torch.zeros((2, 3), dtype=z.dtype),),
    "aten.ones_like.default": (lambda z: torch.ones_like(z),),
    "aten.zeros_like.default": (lambda z: torch.zeros_like(z),),
    "aten.new_ones.default": (lambda z: z.new_ones((2, 3)),),
    "aten.new_zeros.default": (lambda z: z.new_zeros((2, 3)),),
    "aten.scalar_tensor.default": (lambda z: aten.scalar_tensor(2, dtype=z.dtype),),
    # Integers that stand for real numbers.
    "quantized_decomposed.quantize_per_tensor.default": (
        lambda x: pt2e.quantize_per_tensor(x, 0.0173, 5, *_range(torch.int8)),
        lambda x: pt2e.quantize_per_tensor(x, 0.031, 100, *_range(torch.uint8)),
        lambda x: pt2e.quantize_per_tensor(x, 1e-4, -9, *_range(torch.int16)),
        lambda x: pt2e.quantize_per_tensor(x, 0.031, 5, -40, 20, torch.int8),
    ),
    "quantized_decomposed.quantize_per_channel.default": (
        lambda i: pt2e.quantize_per_channel(i, SCALES, POINTS, 1, *_range(torch.uint8)),
    ),
    "quantized_decomposed.dequantize_per_tensor.default": (
        lambda z: pt2e.dequantize_per_tensor(z, 0.013, 3, *_range(z.dtype)),
    ),
    "quantized_decomposed.dequantize_per_channel.default": (
        lambda z: pt2e.dequantize_per_channel(z, SCALES, ZEROS[z.dtype], 2, *_range(z.dtype)),
    ),
}  # fmt: skip


def _range(dtype: torch.dtype) -> tuple[int, int, torch.dtype]:
    info = torch.iinfo(dtype)
    return info.min, info.max, dtype


REWRITTEN: dict[str, Function] = {
    "aten.avg_pool3d.default": lambda v: F.avg_pool3d(v, (2, 3, 1), 2, (1, 1, 0), False, True, 5),
    "quantized_decomposed.quantize_per_tensor.tensor": lambda x: pt2e.quantize_per_tensor.tensor(
        x, SCALE, ZERO, -99, 9, torch.int8
    ),
    "quantized_decomposed.dequantize_per_channel.default": lambda i: pt2e.dequantize_per_channel(
        i.to(torch.int8), DOUBLE, None, 1, *_range(torch.int8)
    ),
    "aten.conv1d.default": lambda h: (F.conv1d(h, w1, bias6, 2, 1, 2, 2), F.conv1d(h, full1)),
    "aten.conv1d.padding": lambda h: F.conv1d(h, full1, bias6, padding="same"),
    "aten.conv3d.default": lambda v: (
        F.conv3d(v, w3, bias6, (2, 1, 1), (1, 0, 1), (1, 2, 1), 2),
        F.conv3d(v, full3),
    ),
    "aten.conv3d.padding": lambda v: F.conv3d(v, full3, bias6, padding="same"),
    "aten.convolution.default": lambda h, i: (
        aten.convolution(h, w1, bias6, [2], [1], [2], False, [0], 2),
        aten.convolution(h, t1, None, [2], [1], [1], True, [1], 2),
        aten.convolution(i, t2, None, [2, 1], [1, 0], [1, 1], True, [1, 0], 1),
    ),
    "aten.conv_transpose1d.default": lambda h: (
        F.conv_transpose1d(h, t1, None, 2, 1, 1, 2),
        F.conv_transpose1d(h, t1, bias6[:3], 1, 0, 0, 1, 2),
    ),
    "aten.conv_transpose2d.input": lambda i: (
        F.conv_transpose2d(i, t2, None, (2, 1), (1, 0), (1, 0), 2),
        F.conv_transpose2d(i, t2, bias6[:3], 1, 0, 0, 1, 2),
    ),
    "aten.select.int": lambda s: s[..., -2],
    "aten.index.Tensor": lambda z, j: (z[:, fixed_indices - 2], z[:, j - 1], z[..., j]),
    "aten.clamp.default": lambda j: (torch.clamp(j, min=1), torch.clamp(j, 1, 1)),
    "aten.clamp_max.default": lambda j: torch.clamp_max(j, 1),
    "aten.clamp_min.default": lambda j: torch.clamp_min(j, 1),
    "aten.mul.Tensor": lambda t, x: (t * x, t * t.flip(0)),
    "aten.group_norm.default": lambda i: F.group_norm(i, 2),
    "aten.elu.default": lambda s: aten.elu(s, 0.7, 1.5),
    "aten.selu.default": lambda s: F.selu(s),
    "aten.max.dim": lambda x: (*x.max(1), *x.trunc().max(-1, keepdim=True)),
    "aten.min.dim": lambda x: (*x.min(1), *x.trunc().min(-1, keepdim=True)),
    "aten.std.dim": lambda x: x.std(1),
    "aten.var.dim": lambda x: (x.var(1), x.var((0, 2), False, True)),
}
"""What settling has to rewrite: each has an operator outside of the table or of its row."""
