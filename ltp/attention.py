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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[tuple[int, int]],
    dropout: float,
    *,
    needs_received: bool,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention within each of several packed sequences.

    Sequences of equal length are one batched product over a view; nothing is padded or copied.

    Args:
        query, key, value: (T, H, D/H), the sequences one after the other.
        groups: (sequences, tokens of each) of every run of neighbours of equal length; they cover all T tokens.
        dropout: probability of dropping an attention weight (0 outside training).
        needs_received: whether the second result is wanted; without, a fused kernel serves.

    Returns:
        The context, (T, D), and the attention that each token received from its sequence before dropout, summed
        over heads and queries, (T,) float32 (empty where it is not wanted).
    """
    contexts, received = [], []
    sizes = [sequences * length for sequences, length in groups]
    parts = zip(groups, *(x.split(sizes) for x in (query, key, value)), strict=True)
    for group, *qkv in parts:
        q, k, v = (x.unflatten(0, group).transpose(1, 2) for x in qkv)  # (sequences, H, n, D/H)
        if needs_received:
            probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (sequences, H, n, n)
            received.append(probs.sum(dim=(1, 2), dtype=torch.float32).flatten())
            weights = functional.dropout(probs, dropout) if dropout else probs
            context = weights.to(v.dtype) @ v
        else:
            context = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # (sequences · n, H, D/H)
    return torch.cat(contexts).flatten(1), torch.cat(received) if received else query.new_empty(0, dtype=torch.float32)
