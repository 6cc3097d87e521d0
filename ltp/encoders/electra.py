"""Adapter to ELECTRA: BERT's layers, with embeddings of another width and a head of its own."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import ElectraConfig, ElectraForSequenceClassification

from ltp.encoders.bert import BertFamily


class ElectraFamily(BertFamily):
    """``ElectraForSequenceClassification``."""

    model_type: ClassVar[str] = "electra"
    config_class: ClassVar[Any] = ElectraConfig
    classifier_class: ClassVar[Any] = ElectraForSequenceClassification

    @staticmethod
    def embed(
        model: Any,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        hidden = BertFamily.embed(model, input_ids, token_type_ids, position_ids, inputs_embeds)
        projection = getattr(model.base_model, "embeddings_project", None)  # only where the widths differ
        return hidden if projection is None else projection(hidden)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(pooled[:, None])  # the head reads position 0 of (B, 1, D)
