"""Adapter to ModernBERT: normalisation first, rotary embeddings, sliding windows, a gated FFN."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from ltp.encoders.base import EncoderFamily, LayerParts, Rotation
from ltp.pruning.tokens import EncoderShape


@dataclass(frozen=True)
class _Layer:
    module: Any
    rotary: Any  # the embeddings of all layers


class ModernBertFamily(EncoderFamily):
    """``ModernBertForSequenceClassification``. It has no token types."""

    model_type: ClassVar[str] = "modernbert"
    config_class: ClassVar[Any] = ModernBertConfig
    classifier_class: ClassVar[Any] = ModernBertForSequenceClassification
    has_positions: ClassVar[bool] = True

    @classmethod
    def shape(cls, config: Any) -> EncoderShape:
        windows = tuple(
            2 * config.sliding_window + 1 if kind == "sliding_attention" else None for kind in config.layer_types
        )
        return dataclasses.replace(super().shape(config), ffn_products=3, windows=windows)

    @classmethod
    def pools_mean(cls, config: Any) -> bool:
        return config.classifier_pooling == "mean"

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        encoder = model.base_model
        return [_Layer(module, encoder.rotary_emb) for module in encoder.layers]

    @classmethod
    def layer_list(cls, model: Any) -> nn.ModuleList:
        return model.base_model.layers

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        return model.base_model.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds)

    @staticmethod
    def attention_positions(columns: Tensor, position_ids: Tensor | None) -> Tensor:
        return columns if position_ids is None else position_ids

    @staticmethod
    def finish(model: Any, hidden: Tensor) -> Tensor:
        return model.base_model.final_norm(hidden)

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        attention, mlp = layer.module.attn, layer.module.mlp
        query, key, value = _split(attention.Wqkv, 3)
        up, gate = _split(mlp.Wi, 2)
        norm = layer.module.attn_norm
        return LayerParts(
            heads=attention.Wqkv.out_features // 3 // attention.head_dim,
            query=query,
            key=key,
            value=value,
            attention_output=attention.Wo,
            attention_norm=None if isinstance(norm, nn.Identity) else norm,
            up=up,
            activation=mlp.act,
            down=mlp.Wo,
            output_norm=layer.module.mlp_norm,
            gate=gate,
            norm_first=True,
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.module.attn
        qkv = attention.Wqkv(layer.module.attn_norm(hidden)).unflatten(-1, (3, -1, attention.head_dim))
        query, key, value = qkv.unbind(dim=-3)
        return query, key, value

    @staticmethod
    def rotation(layer: Any) -> Rotation | None:
        rotary, kind = layer.rotary, layer.module.attention_type

        def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            first, second = x.float().chunk(2, dim=-1)
            return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

        def rotate(query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            cos, sin = (part[..., None, :] for part in rotary(query.float(), positions, kind))  # the same for all heads
            return rotated(query, cos, sin), rotated(key, cos, sin)

        return rotate

    @staticmethod
    def window(layer: Any) -> int | None:
        window = layer.module.attn.sliding_window  # one more than the largest distance
        return None if window is None else int(window) - 1

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        attention = layer.module.attn
        return attention.attention_dropout if attention.training else 0.0

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        attention = layer.module.attn
        return residual + attention.out_drop(attention.Wo(context))

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return hidden + layer.module.mlp(layer.module.mlp_norm(hidden))

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(model.drop(model.head(pooled)))

    @staticmethod
    def label_tokens(model: Any, hidden: Tensor) -> Tensor:
        return model.classifier(model.drop(model.head(hidden)))

    @staticmethod
    def find_spans(model: Any, hidden: Tensor) -> Tensor:
        return model.classifier(model.drop(model.head(hidden)))


def _split(linear: nn.Linear, count: int) -> list[nn.Linear]:
    """Return the parts of a fused projection, which share its weight."""
    parts = []
    weights = linear.weight.chunk(count)
    biases = [None] * count if linear.bias is None else linear.bias.chunk(count)
    for weight, bias in zip(weights, biases, strict=True):
        part = nn.Linear(linear.in_features, len(weight), bias=bias is not None, device="meta")
        part.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            part.bias = nn.Parameter(bias.detach(), requires_grad=False)
        parts.append(part)
    return parts
