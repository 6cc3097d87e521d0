"""Adapter to ALBERT: all layers of a group share their weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForSequenceClassification

from ltp.encoders.base import EncoderFamily, LayerParts, heads_of, probability
from ltp.pruning.tokens import EncoderShape


class AlbertFamily(EncoderFamily):
    """``AlbertForSequenceClassification``."""

    model_type: ClassVar[str] = "albert"
    config_class: ClassVar[Any] = AlbertConfig
    classifier_class: ClassVar[Any] = AlbertForSequenceClassification

    @classmethod
    def shape(cls, config: Any) -> EncoderShape:
        shape = super().shape(config)
        return dataclasses.replace(shape, num_layers=shape.num_layers * config.inner_group_num)

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        config, groups = model.config, model.base_model.encoder.albert_layer_groups
        per_group = config.num_hidden_layers / config.num_hidden_groups
        order = [groups[int(number / per_group)] for number in range(config.num_hidden_layers)]
        return [layer for group in order for layer in group.albert_layers]

    @classmethod
    def layer_list(cls, model: Any) -> nn.ModuleList:
        return model.base_model.encoder.albert_layer_groups

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        hidden = model.base_model.embeddings(
            input_ids, position_ids=position_ids, token_type_ids=token_type_ids, inputs_embeds=inputs_embeds
        )
        return model.base_model.encoder.embedding_hidden_mapping_in(hidden)

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        attention = layer.attention
        return LayerParts(
            heads=attention.num_attention_heads,
            query=attention.query,
            key=attention.key,
            value=attention.value,
            attention_output=attention.dense,
            attention_norm=attention.LayerNorm,
            up=layer.ffn,
            activation=layer.activation,
            down=layer.ffn_output,
            output_norm=layer.full_layer_layer_norm,
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.attention
        linears = (attention.query, attention.key, attention.value)
        return heads_of(hidden, linears, attention.num_attention_heads)

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        return probability(layer.attention.attention_dropout)

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        attention = layer.attention
        return attention.LayerNorm(residual + attention.output_dropout(attention.dense(context)))

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return layer.full_layer_layer_norm(layer.ff_chunk(hidden) + hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        encoder = model.base_model
        return model.classifier(model.dropout(encoder.pooler_activation(encoder.pooler(pooled))))
