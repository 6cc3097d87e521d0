"""Self-attention that also tells how much attention each token received, over padded and over packed tokens."""

import torch
from torch import Tensor
from torch.nn import functional

from ltp.execution.packing import Packing
from ltp.pruning.importance import attention_received

#: Up to so many tokens a CPU computes the attention of half-precision sequences in float32: as fast, and exact.
FLOAT32_TOKENS = 128
#: Survival probabilities below this are taken for it: next to 1, float32 no longer sees them.
SMALLEST_SURVIVAL = 1e-12


def survival_bias(survival: Tensor) -> Tensor:
    """What a key's attention logits get for its survival probability w, so that its weight is w·exp(logit).

    Args:
        survival: any shape, float32 in [0, 1].

    Returns:
        ``log w``, bounded below: a token that is surely gone still has finite gradients, and no weight.
    """
    return survival.clamp(min=SMALLEST_SURVIVAL).log()


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, alive: Tensor, dropout: float, survival: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over padded sequences; keys that are not alive get probability 0.

    Args:
        query, key, value: (B, N, H, D/H).
        alive: tokens alive, (B, N) bool, at least one in each example.
        dropout: probability of dropping an attention weight (0 outside training).
        survival: probability w that each token is alive, (B, N) float32: keys weigh w times as much.

    Returns:
        The context, (B, N, D), and the probabilities *before* dropout, (B, H, N, N): dropout would make importance
        random and its expectation wrong (rows would no longer sum to 1).
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, H, N, D/H)
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    bias = torch.zeros_like(alive, dtype=logits.dtype) if survival is None else survival_bias(survival).to(logits.dtype)
    bias = bias.masked_fill(~alive, torch.finfo(logits.dtype).min)
    probs = (logits + bias[:, None, None, :]).softmax(dim=-1)
    weights = functional.dropout(probs, dropout) if dropout else probs
    context = (weights.to(value.dtype) @ value).transpose(1, 2)  # (B, N, H, D/H)
    return context.flatten(2), probs


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    needs_received: bool,
    survival: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention within each of several packed sequences.

    A kernel for packed sequences would go here.

    Args:
        query, key, value: (T, H, D/H).
        packing: where the sequences stand.
        dropout: probability of dropping an attention weight (0 outside training).
        needs_received: whether the second result is wanted; without, a fused kernel serves.
        survival: probability w that each token is alive, (T,) float32: keys weigh w times as much, and queries count
            w times in what is received. With it the second result is always computed.

    Returns:
        The context, (T, D), and the attention that each token received from its sequence before dropout, summed
        over heads and queries, (T,) float32 (empty where it is not wanted).
    """
    # a CPU gains by what is not computed, a GPU by how few kernels are launched
    attend = attention_by_length if query.device.type == "cpu" else attention_by_rows
    return attend(query, key, value, packing, dropout, needs_received=needs_received, survival=survival)


def attention_by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    needs_received: bool,
    survival: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`packed_attention` with one product for all sequences of equal length: nothing is padded or copied."""
    contexts, received = [], []
    sizes = [sequences * length for sequences, length in packing.groups]
    survivals = survival.split(sizes) if survival is not None else [None] * len(sizes)
    parts = zip(packing.groups, survivals, *(x.split(sizes) for x in (query, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):  # the types are chosen here
        for (sequences, length), weights, *qkv in parts:
            kind = torch.float32 if length <= FLOAT32_TOKENS else query.dtype
            q, k, v = (x.to(kind).unflatten(0, (sequences, length)).transpose(1, 2) for x in qkv)  # (…, H, n, D/H)
            if weights is not None:
                weights = weights.view(sequences, 1, 1, length)
                logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + survival_bias(weights).to(kind)
                probs = logits.softmax(dim=-1)
                received.append((weights @ probs.float()).sum(dim=(1, 2)).flatten())
                context = (functional.dropout(probs, dropout) if dropout else probs) @ v
            elif needs_received:
                probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (…, H, n, n)
                received.append(probs.sum(dim=(1, 2), dtype=torch.float32).flatten())
                context = (functional.dropout(probs, dropout) if dropout else probs) @ v
            else:
                context = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
            contexts.append(context.transpose(1, 2).flatten(0, 1))  # (sequences · n, H, D/H)
    context = torch.cat(contexts).flatten(1).to(value.dtype)
    return context, torch.cat(received) if received else query.new_empty(0, dtype=torch.float32)


def attention_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    *,
    needs_received: bool,
    survival: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`packed_attention` with one product for all sequences, padded to the longest one alive."""
    query, key, value = (packing.pad(x) for x in (query, key, value))  # (B, N, H, D/H)
    if needs_received or survival is not None:
        rows = packing.pad(survival) if survival is not None else None
        context, probs = masked_attention(query, key, value, packing.alive, dropout, rows)
        return packing.pack(context), packing.pack(attention_received(probs, packing.alive if rows is None else rows))
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = packing.alive[:, None, None, :]
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return packing.pack(context.transpose(1, 2).flatten(2)), query.new_empty(0, dtype=torch.float32)
