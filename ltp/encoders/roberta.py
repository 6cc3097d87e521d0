"""Adapters to RoBERTa, XLM-RoBERTa and CamemBERT: BERT's layers under the same names, with another head."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import (
    CamembertConfig,
    CamembertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from ltp.encoders.bert import BertFamily


class RobertaFamily(BertFamily):
    """``RobertaForSequenceClassification``."""

    model_type: ClassVar[str] = "roberta"
    config_class: ClassVar[Any] = RobertaConfig
    classifier_class: ClassVar[Any] = RobertaForSequenceClassification

    @classmethod
    def max_input_tokens(cls, config: Any) -> int:
        return int(config.max_position_embeddings - config.pad_token_id - 1)  # positions start after the padding index

    @staticmethod
    def position_ids(model: Any, input_ids: Tensor) -> Tensor:
        embeddings = model.base_model.embeddings
        return embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)

    @staticmethod
    def classify(model: Any, pooled: Tensor) -> Tensor:
        return model.classifier(pooled[:, None])  # the head reads position 0 of (B, 1, D)


class XLMRobertaFamily(RobertaFamily):
    """``XLMRobertaForSequenceClassification``."""

    model_type: ClassVar[str] = "xlm-roberta"
    config_class: ClassVar[Any] = XLMRobertaConfig
    classifier_class: ClassVar[Any] = XLMRobertaForSequenceClassification


class CamembertFamily(RobertaFamily):
    """``CamembertForSequenceClassification``."""

    model_type: ClassVar[str] = "camembert"
    config_class: ClassVar[Any] = CamembertConfig
    classifier_class: ClassVar[Any] = CamembertForSequenceClassification
