"""Add pruning to a fine-tuned model."""

from typing import Any

from transformers import PreTrainedModel

from ltp.encoders import encoder_family
from ltp.model import MODEL_CLASSES, model_class
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import aliases, default_method


def prune(model: PreTrainedModel, prune_mode: str | None = None, **pruning: Any) -> LTPPreTrainedModel:
    """Add token pruning to a fine-tuned model, or change how a pruned model prunes.

    Args:
        model: a Hugging Face model of a known family, for sequence or token classification, question answering or
            without a head; or one returned by this function. Weights are shared.
        prune_mode: the method, ``threshold`` (the default), ``topk``, …, by its name or another on the command line.
        pruning: settings of the method: ``final_token_threshold=0.01``, ``token_keep_rate=0.2``, …; and
            ``masking_mode="soft"`` to learn thresholds.

    Raises:
        ValueError: ltp has no adapter for the model or for its head, a setting is unknown, or a value is outside its
            range.
    """
    prune_mode = default_method().name if prune_mode is None else aliases().get(prune_mode, prune_mode)
    if isinstance(model, LTPPreTrainedModel):
        model.set_pruning(prune_mode=prune_mode, **pruning)
        return model
    family = encoder_family(model.config.model_type)
    for name, (_, auto_class) in MODEL_CLASSES.items():
        if isinstance(model, family.dense_class(auto_class)):
            return model_class(name).from_dense(model, prune_mode=prune_mode, **pruning)
    known = ", ".join(family.dense_class(auto_class).__name__ for _, auto_class in MODEL_CLASSES.values())
    raise ValueError(f"{type(model).__name__} has a head that ltp does not know; of this family it prunes {known}")
