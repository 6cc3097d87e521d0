"""RoBERTa, base and large: BERT's layers under the same names, with another head."""

from torch import Tensor, nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from ltp.backbones.bert import BertBackbone


class RobertaBackbone(BertBackbone):
    """``RobertaForSequenceClassification``."""

    config_class = RobertaConfig
    classifier_class = RobertaForSequenceClassification

    @staticmethod
    def classify(model: nn.Module, class_token: Tensor) -> Tensor:
        return model.classifier(class_token[:, None])  # the head reads position 0 of (B, 1, D)
