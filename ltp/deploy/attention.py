"""Attention within packed sequences for CPU inference, with few operations per sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltp.execution.attention import FLOAT32_TOKENS

#: Above this size, attention probabilities are computed in chunks of heads, so that a chunk stays in the CPU cache.
CHUNK_BYTES = 512 * 1024


def deployed_attention(
    qkv: Tensor, lengths: Sequence[int], *, needs_received: bool, first_only: bool
) -> tuple[list[Tensor], Tensor]:
    """Softmax attention within each packed sequence.

    Args:
        qkv: queries (already scaled), keys and values, (T, 3, H, D/H), float32 or bfloat16, sequence after sequence.
        lengths: lengths of the sequences, which sum to T.
        needs_received: whether to compute the second result.
        first_only: whether to compute only the context of each sequence's first token.

    Returns:
        The context of each sequence, (n, H, D/H) (n is 1 with ``first_only``), and the attention that each token
        receives from its sequence, summed over heads and queries, (T,) float32 (empty if not computed).
    """
    contexts, received = [], []
    for rows, length in zip(qkv.split(list(lengths)), lengths, strict=True):
        if length <= FLOAT32_TOKENS:
            rows = rows.float()
        query, key, value = rows.permute(1, 2, 0, 3).unbind(0)  # each (H, n, D/H)
        if first_only and not needs_received:  # the other queries are not needed
            query = query[:, :1]
        heads = max(1, CHUNK_BYTES // (4 * query.shape[1] * length))
        if heads >= len(query):
            context, sums = _attend(query, key, value, needs_received, first_only)
        else:
            parts = zip(query.split(heads), key.split(heads), value.split(heads), strict=True)
            chunks = [_attend(*part, needs_received, first_only) for part in parts]
            context = torch.cat([context for context, _ in chunks])
            sums = torch.stack([sums for _, sums in chunks]).sum(dim=0)
        contexts.append(context.transpose(0, 1))
        received.append(sums)
    return contexts, received[0] if len(received) == 1 else torch.cat(received)


def _attend(query: Tensor, key: Tensor, value: Tensor, needs_received: bool, first_only: bool) -> tuple[Tensor, Tensor]:
    """Compute context, (H, n, D/H), and attention received, (n,) float32, of one sequence; inputs are (H, n, D/H)."""
    probs = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1, dtype=torch.float32)  # (H, n, n)
    sums = probs.sum(dim=(0, 1)) if needs_received else probs.new_empty(0)
    if first_only:
        probs = probs[:, :1]
    return torch.bmm(probs.to(value.dtype), value), sums
