"""Small vision transformers, in the three ways in which attention is written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.seed_modules import LbcLinear, SrSteLinear

Layer = Callable[[int, int], nn.Module]
WIDTH, HEADS, HIDDEN, CLASSES = 16, 2, 32, 5


class Fused(nn.Module):
    """Queries, keys and values by one linear layer, as in timm and DeiT."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.qkv, self.proj = layer(WIDTH, 3 * WIDTH), layer(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q @ k.transpose(-2, -1)) * (width // HEADS) ** -0.5
        y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, width)
        made: Tensor = self.proj(y)
        return made


class Separate(nn.Module):
    """Three linear layers, as in transformers."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.query, self.key, self.value = (layer(WIDTH, WIDTH) for _ in range(3))
        self.out = layer(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        made: Tensor = self.out(y.reshape(x.shape))
        return made


class Torch(nn.Module):
    """`nn.MultiheadAttention`, whose projections are parameters of its own."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        nn.init.normal_(self.mha.in_proj_bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mha(x, x, x, need_weights=False)[0]
        return y


ATTENTION: dict[str, Callable[[Layer], nn.Module]] = {
    "fused": Fused,
    "separate": Separate,
    "torch": Torch,
}

LAYERS: dict[str, tuple[str, ...]] = {
    "fused": ("attn.qkv", "attn.proj"),
    "separate": ("attn.query", "attn.key", "attn.value", "attn.out"),
    "torch": ("attn.mha.in_proj", "attn.mha.out_proj"),
}
"""The layers of one attention, by their names in a block."""


class Block(nn.Module):
    """As in ViT: norms in front."""

    def __init__(self, attention: str, layer: Layer) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), ATTENTION[attention](layer)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = layer(WIDTH, HIDDEN), layer(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """Input (N, 3, 8, 8), output (N, CLASSES); four patches and a class token."""

    def __init__(self, attention: str, layer: Layer = nn.Linear, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, WIDTH))
        self.blocks = nn.Sequential(*(Block(attention, layer) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(y))[:, 0])
        return logits


def transformer(attention: str, layer: Layer = nn.Linear, seed: int = 0) -> nn.Module:
    """In eval mode, with norms whose scales and shifts are not the neutral ones."""
    torch.manual_seed(seed)
    model = VisionTransformer(attention, layer)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def names(attention: str, depth: int = 2) -> list[str]:
    """The layers that are pruned where nobody names any."""
    inner = (*LAYERS[attention], "fc1", "fc2")
    return [f"blocks.{index}.{name}" for index in range(depth) for name in inner]


PUBLIC: dict[str, Layer] = {"srste": SrSteLinear, "lbc": LbcLinear}
"""Linear layers in the shape of public code."""

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(11))
