"""Self-attention that also returns its probabilities, which importance is computed from."""

import torch
from torch import Tensor
from torch.nn import functional


def masked_attention(query: Tensor, key: Tensor, value: Tensor, alive: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over padded sequences; keys that are not alive get probability 0.

    Args:
        query, key, value: (B, N, H, D/H).
        alive: tokens alive, (B, N) bool, at least one in each example.
        dropout: probability of dropping an attention weight (0 outside training).

    Returns:
        The context, (B, N, D), and the probabilities *before* dropout, (B, H, N, N): dropout would make importance
        random and its expectation wrong (rows would no longer sum to 1).
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, H, N, D/H)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    bias = torch.zeros_like(alive, dtype=logits.dtype).masked_fill(~alive, torch.finfo(logits.dtype).min)
    probs = (logits + bias[:, None, None, :]).softmax(dim=-1)
    weights = functional.dropout(probs, dropout) if dropout else probs
    context = (weights.to(value.dtype) @ value).transpose(1, 2)  # (B, N, H, D/H)
    return context.flatten(2), probs
