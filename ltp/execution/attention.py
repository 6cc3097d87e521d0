"""Self-attention over padded and packed tokens that also returns the attention that each token receives."""

import torch
from torch import Tensor
from torch.nn import functional

from ltp.execution.packing import Packing
from ltp.pruning.importance import attention_received

#: On a CPU, half-precision sequences of up to this many tokens use float32 attention: as fast, and exact.
FLOAT32_TOKENS = 128
#: Lower bound of survival probabilities: smaller values are negligible next to 1 in float32.
SMALLEST_SURVIVAL = 1e-12


def survival_bias(survival: Tensor) -> Tensor:
    """Compute the bias of a key's attention logits for its survival probability w: its weight is w·exp(logit).

    Args:
        survival: w, any shape, float32 in [0, 1].

    Returns:
        ``log w`` with w clamped at :data:`SMALLEST_SURVIVAL`, so that gradients at w = 0 are finite.
    """
    return survival.clamp(min=SMALLEST_SURVIVAL).log()


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, alive: Tensor, dropout: float, survival: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention over padded sequences; keys that are not alive have probability 0.

    Args:
        query, key, value: (B, N, H, D/H).
        alive: tokens alive, (B, N) bool, at least one in each example.
        dropout: probability of dropping an attention weight (0 outside training).
        survival: probability w that each token is alive, (B, N) float32, a factor on the weights of keys.

    Returns:
        The context, (B, N, D), and the probabilities *before* dropout, (B, H, N, N): with dropout, importance would
        be random, and rows would not sum to 1.
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
    """Scaled dot-product attention within each packed sequence.

    A kernel for packed sequences can replace this function.

    Args:
        query, key, value: (T, H, D/H).
        packing: positions of the sequences.
        dropout: probability of dropping an attention weight (0 outside training).
        needs_received: whether to compute the second result; if not, a fused kernel is used.
        survival: probability w that each token is alive, (T,) float32, a factor on the weights of keys and on the
            queries in the sum of attention received. If given, the second result is always computed.

    Returns:
        The context, (T, D), and the attention that each token receives from its sequence before dropout, summed
        over heads and queries, (T,) float32 (empty if not computed).
    """
    # a CPU is faster without computing padding, a GPU with fewer kernel launches
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
    """:func:`packed_attention` with one product per group of sequences of equal length, without padding or copies."""
    contexts, received = [], []
    sizes = [sequences * length for sequences, length in packing.groups]
    survivals = survival.split(sizes) if survival is not None else [None] * len(sizes)
    parts = zip(packing.groups, survivals, *(x.split(sizes) for x in (query, key, value)), strict=True)
    with torch.autocast("cpu", enabled=False):  # dtypes are chosen explicitly here
        for (sequences, length), weights, *qkv in parts:
            dtype = torch.float32 if length <= FLOAT32_TOKENS else query.dtype
            q, k, v = (x.to(dtype).unflatten(0, (sequences, length)).transpose(1, 2) for x in qkv)  # (…, H, n, D/H)
            if weights is not None:
                weights = weights.view(sequences, 1, 1, length)
                logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + survival_bias(weights).to(dtype)
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
    """:func:`packed_attention` with one product for all sequences, padded to the longest remaining one."""
    query, key, value = (packing.pad(x) for x in (query, key, value))  # (B, N, H, D/H)
    if needs_received or survival is not None:
        rows = packing.pad(survival) if survival is not None else None
        context, probs = masked_attention(query, key, value, packing.alive, dropout, rows)
        return packing.pack(context), packing.pack(attention_received(probs, packing.alive if rows is None else rows))
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = packing.alive[:, None, None, :]
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return packing.pack(context.transpose(1, 2).flatten(2)), query.new_empty(0, dtype=torch.float32)
