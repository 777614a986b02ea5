"""Architectures that others wrote: those of `transformers`, in their published sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OneOutput(nn.Module):
    """The first tensor of whatever a model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        returned = self.model(x)
        while not isinstance(returned, Tensor):
            returned = returned[0] if isinstance(returned, tuple) else tuple(returned.values())
        return returned


def _made(kind: str, name: str, **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return OneOutput(getattr(transformers, f"{name}{kind}")(config))


def _classifier(name: str, **options: Any) -> nn.Module:
    return _made("ForImageClassification", name, **options)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0, 0.4 GMAC at 224²."""
    return _classifier(
        "EfficientNet",
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        image_size=224,
    )


def regnet_y() -> nn.Module:
    """RegNetY-400MF, 0.4 GMAC at 224²."""
    return _classifier(
        "RegNet", embedding_size=32, hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6],
        groups_width=8, layer_type="y",
    )  # fmt: skip


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T, 4.5 GMAC at 224²."""
    return _classifier("ConvNext")


def convnextv2_atto() -> nn.Module:
    """ConvNeXt V2-A, 0.55 GMAC at 224²."""
    return _classifier("ConvNextV2", hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2])


def poolformer_s12() -> nn.Module:
    """PoolFormer-S12, 1.8 GMAC at 224²."""
    return _classifier("PoolFormer")


def mobilevit_s() -> nn.Module:
    """MobileViT-S, 2 GMAC at 256²."""
    return _classifier("MobileViT")


def swiftformer_xs() -> nn.Module:
    """SwiftFormer-XS, 0.6 GMAC at 224²."""
    return _classifier("SwiftFormer")


def levit_128s() -> nn.Module:
    """LeViT-128S, 0.3 GMAC at 224²."""
    return _classifier("Levit", depths=[2, 3, 4], num_attention_heads=[4, 6, 8])


def swin_tiny() -> nn.Module:
    """Swin-T, 4.5 GMAC at 224²."""
    return _classifier("Swin")


def vit_small() -> nn.Module:
    """ViT-S/16, 4.6 GMAC at 224²."""
    return _classifier(
        "ViT", hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=12
    )


def segformer_b0() -> nn.Module:
    """SegFormer-B0, 8.4 GMAC at 512²."""
    return _made("ForSemanticSegmentation", "Segformer")


class _Tokens(nn.Module):
    """A language model over given embeddings: (batch, tokens, features)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.model(inputs_embeds=x)[0]
        return states


def bert_small() -> nn.Module:
    """BERT-small (4 layers of 512), over the embeddings of its tokens."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048
    )
    return _Tokens(transformers.BertModel(config))


def bert_base() -> nn.Module:
    """An encoder of BERT-base's size (12 layers of 768), over the embeddings of its tokens."""
    import transformers

    return _Tokens(transformers.BertModel(transformers.BertConfig()))


class _Translator(nn.Module):
    """The encoder of a translation model over embeddings, and one step of its decoder.

    The last embedding is that of the decoder's token. It stands behind `past` others, whose keys
    and values are held, and attends to these and to all of the encoder's states:
    (batch, tokens + 1, features) to the scores of the next token, (batch, 1, words), and to the
    keys and values of the first layer of the decoder, with its own.
    """

    past: Tensor

    def __init__(self, model: Any, past: int) -> None:
        super().__init__()
        self.encoder, self.decoder = model.model.encoder, model.model.decoder
        self.words, config = model.lm_head, model.config
        self.layers, heads = config.decoder_layers, config.decoder_attention_heads
        held = (2, config.decoder_layers, 1, heads, past, config.d_model // heads)
        self.register_buffer("past", torch.randn(held))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from transformers import DynamicCache, EncoderDecoderCache

        states = self.encoder(inputs_embeds=x[:, :-1])[0]
        own = DynamicCache()
        for layer in range(self.layers):
            own.update(self.past[0, layer], self.past[1, layer], layer)
        cache = EncoderDecoderCache(own, DynamicCache())
        given = {"encoder_hidden_states": states, "past_key_values": cache}
        made = self.decoder(inputs_embeds=x[:, -1:], use_cache=True, **given)[0]
        held = cache.self_attention_cache.layers[0]
        return self.words(made), held.keys, held.values


def marian(
    width: int = 512, layers: int = 6, hidden: int = 2048, words: int = 58101, past: int = 16
) -> nn.Module:
    """Marian of OPUS-MT's size (Tiedemann and Thottingal, EAMT 2020): encoder and a step."""
    import transformers

    config = transformers.MarianConfig(
        vocab_size=words, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden, activation_function="swish", pad_token_id=words - 1,
        max_position_embeddings=512, decoder_start_token_id=words - 1,
    )  # fmt: skip
    return _Translator(transformers.MarianMTModel(config), past)
