"""The models behind the engines: random classifiers of a shape, and copies in other types and forms."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ltp.encoders import encoder_family
from ltp.model.classifier import LTPForSequenceClassification

_BERT_TINY = {
    "num_hidden_layers": 6,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}
_LARGE = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}

#: Shapes to fill with random weights: Hugging Face's configuration where it differs from BERT-base's.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model_type": "bert", **_BERT_TINY, "vocab_size": 1000},
    "minilm": {"model_type": "bert", **_MINILM},
    "bert-base": {"model_type": "bert"},
    "bert-large": {"model_type": "bert", **_LARGE},
    "roberta-base": {"model_type": "roberta", **_ROBERTA},
    "roberta-large": {"model_type": "roberta", **_ROBERTA, **_LARGE},
}


def random_classifier(shape: str, seed: int = 0) -> PreTrainedModel:
    """A dense classifier of a shape with random weights, in evaluation mode.

    Queries and keys are twice as large as usual: attention is then far from uniform and importance spreads, as in
    trained models.

    Args:
        shape: one of :data:`SHAPES`.
        seed: of the weights.
    """
    family = encoder_family(SHAPES[shape]["model_type"])
    config = family.config_class.from_dict(SHAPES[shape])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family.classifier_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".query." in name or ".key." in name:
                parameter.mul_(2)
    return model.eval()


def shared_copy(model: nn.Module) -> Any:
    """A copy of a model that shares its tensors, so that its settings can differ and no memory is spent."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def in_type(model: LTPForSequenceClassification, dtype: torch.dtype) -> LTPForSequenceClassification:
    """A copy whose dense weights have another type; thresholds stay float32. Shares what it can."""
    if model.dense.dtype == dtype:
        return shared_copy(model)
    copied = copy.deepcopy(model)
    copied.dense.to(dtype)
    return copied


def without_pruning(model: LTPForSequenceClassification) -> LTPForSequenceClassification:
    """The dense form of a pruned classifier: the same tensors, and every token stays."""
    return LTPForSequenceClassification.from_dense(shared_copy(model.dense), prune_mode="none").eval()
