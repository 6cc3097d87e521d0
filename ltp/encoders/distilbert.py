"""Adapter to DistilBERT."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from ltp.encoders.base import EncoderFamily, LayerParts, heads_of, probability


class DistilBertFamily(EncoderFamily):
    """``DistilBertForSequenceClassification``. It has no token types."""

    model_type: ClassVar[str] = "distilbert"
    config_class: ClassVar[Any] = DistilBertConfig
    classifier_class: ClassVar[Any] = DistilBertForSequenceClassification
    size_names: ClassVar[Mapping[str, str]] = {"intermediate_size": "hidden_dim"}

    @staticmethod
    def layers(model: Any) -> Sequence[Any]:
        return model.base_model.transformer.layer

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        return model.base_model.embeddings(input_ids, inputs_embeds, position_ids)

    @classmethod
    def parts(cls, layer: Any) -> LayerParts:
        attention, ffn = layer.attention, layer.ffn
        return LayerParts(
            heads=attention.n_heads,
            query=attention.q_lin,
            key=attention.k_lin,
            value=attention.v_lin,
            attention_output=attention.out_lin,
            attention_norm=layer.sa_layer_norm,
            up=ffn.lin1,
            activation=ffn.activation,
            down=ffn.lin2,
            output_norm=layer.output_layer_norm,
        )

    @staticmethod
    def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.attention
        linears = (attention.q_lin, attention.k_lin, attention.v_lin)
        return heads_of(hidden, linears, attention.n_heads)

    @staticmethod
    def attention_dropout(layer: Any) -> float:
        return probability(layer.attention.dropout)

    @staticmethod
    def attention_output(layer: Any, context: Tensor, residual: Tensor) -> Tensor:
        return layer.sa_layer_norm(layer.attention.out_lin(context) + residual)

    @staticmethod
    def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
        return layer.output_layer_norm(layer.ffn.ff_chunk(hidden) + hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(model.dropout(functional.relu(model.pre_classifier(pooled))))

    @staticmethod
    def find_spans(model: Any, hidden: Tensor) -> Tensor:
        return model.qa_outputs(model.dropout(hidden))
