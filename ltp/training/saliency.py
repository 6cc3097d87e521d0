"""Saliency: how much each token of an input matters to a model's answer."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ltp.model.pretrained import LTPPreTrainedModel


def saliency(model: LTPPreTrainedModel, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Compute gradient times input at the word embeddings, as AdapLeR does (arXiv 2203.08991).

    Args:
        model: the dense model, in evaluation mode.
        inputs: ``input_ids`` and ``attention_mask``, (B, N) int64, and what else it takes.
        labels: the arguments of the model that hold the labels.

    Returns:
        ``‖e ⊙ ∂y/∂e‖₂`` for each embedding e, (B, N) float32, 0 for padding. y is the logit of the true label; of
        several labels the sum of their logits, those of wrong ones negative; of a regression or ranking the output; of
        labels of tokens and spans the loss.
    """
    inputs = dict(inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    with torch.enable_grad():
        if model.output_class.is_of_tokens:
            answer = model(**inputs, inputs_embeds=embeddings, **labels).loss
        else:
            answer = _answer(model(**inputs, inputs_embeds=embeddings).logits, labels["labels"])
    (gradient,) = torch.autograd.grad(answer, embeddings)
    return (embeddings * gradient).detach().float().norm(dim=2) * inputs["attention_mask"]


def _answer(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits.sum()
    if labels.ndim == 2:
        return (logits * (2 * labels - 1)).sum()
    return logits.gather(1, labels[:, None]).sum()
