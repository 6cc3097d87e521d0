"""The models behind the engines: random classifiers of a shape, and copies in other types and forms."""

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltp.deploy.linears import DTYPES, PlainLinear, linear_type
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

_TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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


class Models:
    """One classifier in every type and form the engines need; copies are made when first asked for, and shared.

    Args:
        pruned: the classifier, float32, in evaluation mode on its device, with the pruning to measure.
    """

    def __init__(self, pruned: LTPForSequenceClassification) -> None:
        self.pruned = pruned
        self.device = pruned.device
        self._copies: dict[tuple[str, bool], LTPForSequenceClassification] = {}

    @cached_property
    def prunes(self) -> bool:
        """Whether there is anything to compare a dense model with."""
        return self.pruned.config.prune_mode != "none"

    def ltp(self, dtype: str, *, pruned: bool, execution: str = "packed") -> LTPForSequenceClassification:
        """The classifier in a type, pruned or dense, packed or masked."""
        if (dtype, pruned) not in self._copies:
            if pruned:
                model = in_type(self.pruned, _TORCH_TYPES[dtype])
            else:
                model = without_pruning(self.ltp(dtype, pruned=True))
            self._copies[dtype, pruned] = model.eval()
        model = shared_copy(self._copies[dtype, pruned])
        model.execution = execution
        return model

    def hugging_face(self, dtype: str, attention: str) -> Any:
        """The dense Hugging Face classifier with an attention implementation."""
        model = shared_copy(self.ltp(dtype, pruned=True).dense)
        model.set_attn_implementation(attention)
        return model

    def prepacked(self, dtype: str) -> Any:
        """The dense Hugging Face classifier with sdpa attention and the linears of ``deploy()``.

        Raises:
            RuntimeError: the processor has no products for the type.
        """
        linear = linear_type(dtype)
        model = self.hugging_face("bfloat16" if dtype == "bfloat16" else "float32", "sdpa")
        for layer in self.pruned.family.layers(model):
            for name, module in list(layer.named_modules()):
                if isinstance(module, nn.Linear):
                    layer.set_submodule(name, _Product(module, linear, DTYPES[dtype]))
        return model


class _Product(nn.Module):
    """A linear layer of ``deploy()`` in the place of a Hugging Face model's."""

    def __init__(self, replaced: nn.Linear, linear: type[PlainLinear], dtype: torch.dtype) -> None:
        super().__init__()
        with torch.no_grad():
            self.product = linear(replaced.weight.detach(), replaced.bias.detach(), dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.product(hidden)
