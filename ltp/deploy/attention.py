"""Attention within packed sequences for CPU inference, with few operations per sequence."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ltp.execution.attention import CHUNK, FLOAT32_TOKENS, Pairs, attend, comparable_in_padded, key_bias
from ltp.pruning.importance import attention_sums

#: Above this size, attention probabilities are computed in chunks of heads, so that a chunk stays in the CPU cache.
CHUNK_BYTES = 512 * 1024
_RECEIVED = frozenset({"received"})


def deployed_attention(
    qkv: Tensor,
    lengths: Sequence[int],
    *,
    reads: frozenset[str],
    first_only: bool,
    key_weights: Tensor | None = None,
    pairs: Pairs | None = None,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Softmax attention within each packed sequence.

    Args:
        qkv: queries (already scaled), keys and values, (T, 3, H, D/H), float32 or bfloat16, sequence after sequence.
        lengths: lengths of the sequences, which sum to T.
        reads: which sums to compute, see :func:`~ltp.pruning.importance.attention_sums`.
        first_only: whether to compute only the context of each sequence's first token.
        key_weights: factors on the weights of keys, (T,) float32; None for 1.
        pairs: what pairs of positions add, with positions (T,); None for nothing.

    Returns:
        The context of each sequence, (n, H, D/H) (n is 1 with ``first_only``), and the sums over each token's own
        sequence, by name, each (T,) float32.
    """
    contexts: list[Tensor] = []
    sums: dict[str, list[Tensor]] = {}
    weights = [None] * len(lengths) if key_weights is None else key_weights.split(list(lengths))
    places = [None] * len(lengths) if pairs is None else pairs.positions.split(list(lengths))
    for rows, of_keys, positions, length in zip(qkv.split(list(lengths)), weights, places, lengths, strict=True):
        if length <= FLOAT32_TOKENS:
            rows = rows.float()
        query, key, value = rows.permute(1, 2, 0, 3).unbind(0)  # each (H, n, D/H)
        if positions is not None and pairs is not None:
            context, received = _attend_pairs(
                query, key, value, of_keys, reads, first_only, dataclasses.replace(pairs, positions=positions)
            )
            contexts.append(context.transpose(0, 1))
            for name, values in received.items():
                sums.setdefault(name, []).append(values)
            continue
        if first_only and not reads:  # the other queries are not needed
            query = query[:, :1]
        heads = max(1, CHUNK_BYTES // (4 * query.shape[1] * length))
        if heads >= len(query):
            context, received = _attend(query, key, value, of_keys, reads, first_only)
        else:
            parts = zip(query.split(heads), key.split(heads), value.split(heads), strict=True)
            chunks = [_attend(*part, of_keys, reads, first_only) for part in parts]
            context = torch.cat([context for context, _ in chunks])
            received = {name: torch.stack([part[name] for _, part in chunks]).sum(dim=0) for name in chunks[0][1]}
        contexts.append(context.transpose(0, 1))
        for name, values in received.items():
            sums.setdefault(name, []).append(values)
    return contexts, {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in sums.items()}


def _attend_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_weights: Tensor | None,
    reads: frozenset[str],
    first_only: bool,
    pairs: Pairs,
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`_attend` of a sequence whose logits depend on positions, (n,)."""
    heads, length = query.shape[0], query.shape[1]
    if heads * length**2 > CHUNK:  # a part of the queries at a time
        context, sums = attend(
            *((query * query.shape[-1] ** 0.5)[None], key[None], value[None]),
            dropout=0.0,
            reads=reads,
            bias=None if key_weights is None else key_bias(key_weights).to(query.dtype)[None, None, None],
            presence=None,
            pairs=dataclasses.replace(pairs, positions=pairs.positions[None]),
        )
        context = context[0, :, :1] if first_only else context[0]
        return context, {name: values[0] for name, values in sums.items()}
    last = 1 if first_only and not reads else length
    queries = slice(0, last)
    logits = torch.bmm(query[:, queries], key.transpose(1, 2))
    logits = logits + pairs.part(queries, slice(None)).added(query[:, queries], key)
    if key_weights is not None:
        logits = logits + key_bias(key_weights).to(logits.dtype)
    probs = logits.softmax(dim=-1, dtype=torch.float32)
    sums = attention_sums(probs[None], value[None], None, reads)
    if reads:
        single = dataclasses.replace(pairs, positions=pairs.positions[None])
        sums = comparable_in_padded(sums, single, torch.ones_like(pairs.positions)[None])
    if first_only:
        probs = probs[:, :1]
    return torch.bmm(probs.to(value.dtype), value), {name: values[0] for name, values in sums.items()}


def _attend(
    query: Tensor, key: Tensor, value: Tensor, key_weights: Tensor | None, reads: frozenset[str], first_only: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute context, (H, n, D/H), and sums, (n,) float32, of one sequence; inputs are (H, n, D/H)."""
    logits = torch.bmm(query, key.transpose(1, 2))
    if key_weights is not None:
        logits = logits + key_bias(key_weights).to(logits.dtype)
    probs = logits.softmax(dim=-1, dtype=torch.float32)  # (H, n, n)
    sums: dict[str, Tensor] = {}
    if reads == _RECEIVED:  # one operation for the usual case
        sums = {"received": probs.sum(dim=(0, 1))}
    elif reads:
        sums = {name: values[0] for name, values in attention_sums(probs[None], value[None], None, reads).items()}
    if first_only:
        probs = probs[:, :1]
    return torch.bmm(probs.to(value.dtype), value), sums
