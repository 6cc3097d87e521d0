"""Adapter to BERT."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from ltp.encoders.base import EncoderFamily, LayerParts, heads_of, probability


class BertFamily(EncoderFamily):
    """``BertForSequenceClassification``."""

    model_type: ClassVar[str] = "bert"
    config_class: ClassVar[Any] = BertConfig
    classifier_class: ClassVar[Any] = BertForSequenceClassification

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        return model.base_model.encoder.layer

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        return model.base_model.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        attention = layer.attention.self
        return LayerParts(
            heads=attention.num_attention_heads,
            query=attention.query,
            key=attention.key,
            value=attention.value,
            attention_output=layer.attention.output.dense,
            attention_norm=layer.attention.output.LayerNorm,
            up=layer.intermediate.dense,
            activation=layer.intermediate.intermediate_act_fn,
            down=layer.output.dense,
            output_norm=layer.output.LayerNorm,
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.attention.self
        linears = (attention.query, attention.key, attention.value)
        return heads_of(hidden, linears, attention.num_attention_heads)

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        return probability(layer.attention.self.dropout)

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        return layer.attention.output(context, residual)

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return layer.feed_forward_chunk(hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        pooled = model.base_model.pooler(pooled[:, None])  # the pooler reads position 0 of (B, 1, D)
        return model.classifier(model.dropout(pooled))
