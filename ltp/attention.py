"""Self-attention that also tells how much attention each token received, over padded and over packed tokens."""

from collections.abc import Sequence

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


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], dropout: float, *, needs_received: bool
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention within each of several packed sequences.

    On a CPU a plain loop over the sequences beats padding groups of like length: each product is small enough for
    the caches and nothing is computed for padding.

    Args:
        query, key, value: (T, H, D/H), the sequences one after the other.
        lengths: their lengths, which sum to T.
        dropout: probability of dropping an attention weight (0 outside training).
        needs_received: whether the second result is wanted; without, a fused kernel serves.

    Returns:
        The context, (T, D), and the attention that each token received from its sequence before dropout, summed
        over heads and queries, (T,) float32 (empty where it is not wanted).
    """
    contexts, received = [], []
    parts = zip(*(x.transpose(0, 1).split(list(lengths), dim=1) for x in (query, key, value)), strict=True)
    for q, k, v in parts:  # each (H, n, D/H)
        if not needs_received:
            contexts.append(functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(0, 1))
            continue
        probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (H, n, n)
        received.append(probs.sum(dim=(0, 1), dtype=torch.float32))
        weights = functional.dropout(probs, dropout) if dropout else probs
        contexts.append((weights.to(v.dtype) @ v).transpose(0, 1))  # (n, H, D/H)
    return torch.cat(contexts).flatten(1), torch.cat(received) if received else query.new_empty(0, dtype=torch.float32)
