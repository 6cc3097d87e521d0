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
        ``‖e ⊙ ∂y/∂e‖₂`` for each embedding e, (B, N) float32, 0 for padding. y is the logit of the true label; where a
        text has no single label, the loss.
    """
    inputs = dict(inputs)
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    with torch.enable_grad():
        output = model(**inputs, inputs_embeds=embeddings, **labels)
        label = labels.get("labels")
        if label is not None and label.ndim == 1 and not label.is_floating_point() and output.logits.ndim == 2:
            answer = output.logits.gather(1, label[:, None]).sum()
        else:
            answer = output.loss
    (gradient,) = torch.autograd.grad(answer, embeddings)
    return (embeddings * gradient).detach().float().norm(dim=2) * inputs["attention_mask"]
