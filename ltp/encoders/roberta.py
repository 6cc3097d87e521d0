"""Adapter to RoBERTa: the same layers as BERT under the same names, with another head."""

from typing import Any, ClassVar

from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from ltp.encoders.bert import BertFamily


class RobertaFamily(BertFamily):
    """``RobertaForSequenceClassification``."""

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
    def classify(model: Any, class_token: Tensor) -> Tensor:
        return model.classifier(class_token[:, None])  # the head reads position 0 of (B, 1, D)
