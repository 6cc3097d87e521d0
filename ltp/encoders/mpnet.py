"""Adapter to MPNet: one bias of relative positions for all layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import MPNetConfig, MPNetForSequenceClassification

from ltp.encoders.base import EncoderFamily, LayerParts, PairBias, distances, heads_of, probability


@dataclass(frozen=True)
class _Layer:
    module: Any
    encoder: Any  # which holds the bias


class MPNetFamily(EncoderFamily):
    """``MPNetForSequenceClassification``. It has no token types."""

    model_type: ClassVar[str] = "mpnet"
    config_class: ClassVar[Any] = MPNetConfig
    classifier_class: ClassVar[Any] = MPNetForSequenceClassification
    has_positions: ClassVar[bool] = True

    @classmethod
    def max_input_tokens(cls, config: Any) -> int:
        return int(config.max_position_embeddings - 2)  # positions start after the padding index, which is 1

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        encoder = model.base_model.encoder
        return [_Layer(module, encoder) for module in encoder.layer]

    @classmethod
    def layer_list(cls, model: Any) -> nn.ModuleList:
        return model.base_model.encoder.layer

    @staticmethod
    def position_ids(model: Any, input_ids: Tensor) -> Tensor:
        padding = model.base_model.embeddings.padding_idx
        is_real = input_ids.ne(padding).long()
        return is_real.cumsum(dim=1) * is_real + padding

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        return model.base_model.embeddings(input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        module, attention = layer.module, layer.module.attention
        return LayerParts(
            heads=attention.attn.num_attention_heads,
            query=attention.attn.q,
            key=attention.attn.k,
            value=attention.attn.v,
            attention_output=attention.attn.o,
            attention_norm=attention.LayerNorm,
            up=module.intermediate.dense,
            activation=module.intermediate.intermediate_act_fn,
            down=module.output.dense,
            output_norm=module.output.LayerNorm,
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.module.attention.attn
        return heads_of(hidden, (attention.q, attention.k, attention.v), attention.num_attention_heads)

    @staticmethod
    def pair_bias(layer: Any, reach: int) -> PairBias | None:
        embedding = layer.encoder.relative_attention_bias
        steps = torch.arange(-reach, reach + 1, device=embedding.weight.device)
        # with the default of 32 buckets, as the encoder computes it whatever the configuration says
        table = embedding(layer.encoder.relative_position_bucket(steps))  # (2·reach + 1, H)

        def bias(query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
            return table[distances(query_positions, key_positions) + reach].movedim(-1, -3).to(query.dtype)

        return bias

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        return probability(layer.module.attention.attn.dropout)

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        attention = layer.module.attention
        return attention.LayerNorm(attention.dropout(attention.attn.o(context)) + residual)

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return layer.module.output(layer.module.intermediate(hidden), hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(pooled[:, None])  # the head reads position 0 of (B, 1, D)
