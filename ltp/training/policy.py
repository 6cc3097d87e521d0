"""REINFORCE for methods that sample which tokens stay: what an example's samples answer teaches their probabilities."""

import torch
from torch import Tensor

from ltp.model.pretrained import LTPPreTrainedModel

#: Added to probabilities before their logarithm.
TINY = 1e-6


def policy_loss(probabilities: Tensor, kept: Tensor, rewards: Tensor, samples: int) -> Tensor:
    """Compute the loss whose gradient is REINFORCE's, as TR-BERT does (arXiv 2105.11618).

    The baseline of an example is the mean reward of its samples. The logarithm of a sample's probability is a mean over
    the tokens that enter a layer, summed over the layers.

    Args:
        probabilities: of keeping each token in each of the K layers that decide, (K, S·B, N) float32, with a gradient;
            -1 for padding, and 1 for a token that always stays.
        kept: the decisions, 1 or 0, of the same shape. A token that has left a layer enters no later one.
        rewards: of each sample, (S·B,) float32: all examples once, then all again.
        samples: S.

    Returns:
        Scalar float32.
    """
    kept = kept.detach()
    enters = probabilities.detach() >= 0
    enters[1:] &= kept.cumprod(dim=0)[:-1] > 0
    chosen = torch.where(kept > 0.5, probabilities, 1 - probabilities)
    logarithms = (chosen.clamp(min=0) + TINY).log() * enters
    likelihood = (logarithms.sum(dim=2) / enters.sum(dim=2).clamp(min=1)).sum(dim=0)  # (S·B,)
    by_sample = rewards.detach().view(samples, -1)
    return -((by_sample - by_sample.mean(dim=0)).flatten() * likelihood).mean()


@torch.no_grad()
def row_losses(model: LTPPreTrainedModel, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the task loss of each row, (B,) float32; 0 for a row without a label.

    Args:
        model: gives the loss, which is a mean over what it is called with.
        logits: (B, …).
        targets: labels as the model takes them, (B, …).
    """
    losses = [model.task_loss(logits[row : row + 1], targets[row : row + 1]) for row in range(len(logits))]
    return torch.stack(losses).nan_to_num(nan=0.0)
