"""Attention within packed sequences in Triton: context, what each token receives, and gradients.

A sequence is a run of rows; no padding is computed or stored. Attention received takes a second pass over the keys, so
that no two programs add to one number: results are the same in every run. Products of float32 are exact float32
(no TF32).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Largest size of a head, D/H, that the kernels take.
LARGEST_HEAD = 128


@triton.jit
def _logits(q, k, bias, column, count, scale, HAS_BIAS: tl.constexpr):
    """Scaled products of a block of queries and a block of keys, float32; −inf beyond the sequence."""
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_BIAS:
        logits += bias[None, :]
    return tl.where(column[None, :] < count, logits, float("-inf"))


@triton.jit
def _kept(seed, head, row, column, total, width, dropout):
    """Whether dropout keeps the weight of a query (a row of the packed tensor) and a key (a column)."""
    offset = ((head * total + row)[:, None] * width + column[None, :]).to(tl.uint32)
    return tl.rand(seed, offset) >= dropout


@triton.jit(do_not_specialize=["seed", "total"])
def _forward_kernel(
    Q, K, V, Bias, Out, Lse, Starts, Counts,
    q_row, q_head, k_row, k_head, v_row, v_head,
    total, width, scale, dropout, seed,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Context and log-sum-exp of a block of queries of one sequence and head."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    count = tl.load(Counts + sequence).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first >= count:
        return
    start = tl.load(Starts + sequence)
    query = first + tl.arange(0, BLOCK_M)
    feature = tl.arange(0, BLOCK_D)
    real = feature[None, :] < SIZE
    q = tl.load(
        Q + (start + query)[:, None] * q_row + head * q_head + feature[None, :],
        mask=(query[:, None] < count) & real,
        other=0.0,
    )
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    context = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for offset in range(0, count, BLOCK_N):
        column = offset + tl.arange(0, BLOCK_N)
        key = (start + column)[:, None]
        k = tl.load(
            K + key * k_row + head * k_head + feature[None, :],
            mask=(column[:, None] < count) & real,
            other=0.0,
        )
        v = tl.load(
            V + key * v_row + head * v_head + feature[None, :],
            mask=(column[:, None] < count) & real,
            other=0.0,
        )
        bias = tl.load(Bias + start + column, mask=column < count, other=0.0) if HAS_BIAS else 0.0
        logits = _logits(q, k, bias, column, count, scale, HAS_BIAS)
        larger = tl.maximum(largest, tl.max(logits, axis=1))
        probs = tl.exp(logits - larger[:, None])
        shrink = tl.exp(largest - larger)
        weight = weight * shrink + tl.sum(probs, axis=1)
        if HAS_DROPOUT:
            kept = _kept(seed, head, start + query, column, total, width, dropout)
            probs = tl.where(kept, probs / (1 - dropout), 0.0)
        context = context * shrink[:, None] + tl.dot(probs.to(v.dtype), v, input_precision="ieee")
        largest = larger
    context = context / weight[:, None]
    rows = start + query
    tl.store(
        Out + (rows[:, None] * HEADS + head) * SIZE + feature[None, :],
        context.to(Out.dtype.element_ty),
        mask=(query[:, None] < count) & real,
    )
    tl.store(Lse + rows * HEADS + head, largest + tl.log(weight), mask=query < count)


@triton.jit
def _received_kernel(
    Q, K, Bias, Lse, Weights, Received, Starts, Counts,
    q_row, q_head, k_row, k_head, width, scale,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum the probabilities of a block of keys over the queries of its sequence, for one head; 0 beyond it."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    count = tl.load(Counts + sequence).to(tl.int32)
    start = tl.load(Starts + sequence)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    feature = tl.arange(0, BLOCK_D)
    real = feature[None, :] < SIZE
    received = tl.zeros((BLOCK_N,), tl.float32)
    if tl.program_id(0) * BLOCK_N < count:
        k = tl.load(
            K + (start + column)[:, None] * k_row + head * k_head + feature[None, :],
            mask=(column[:, None] < count) & real,
            other=0.0,
        )
        bias = tl.load(Bias + start + column, mask=column < count, other=0.0) if HAS_BIAS else 0.0
        for offset in range(0, count, BLOCK_M):
            query = offset + tl.arange(0, BLOCK_M)
            rows = start + query
            q = tl.load(
                Q + rows[:, None] * q_row + head * q_head + feature[None, :],
                mask=(query[:, None] < count) & real,
                other=0.0,
            )
            lse = tl.load(Lse + rows * HEADS + head, mask=query < count, other=float("inf"))
            probs = tl.exp(_logits(q, k, bias, column, count, scale, HAS_BIAS) - lse[:, None])
            if HAS_WEIGHTS:
                probs *= tl.load(Weights + rows, mask=query < count, other=0.0)[:, None]
            received += tl.sum(probs, axis=0)
    tl.store(Received + (sequence * HEADS + head).to(tl.int64) * width + column, received, mask=column < width)


@triton.jit(do_not_specialize=["seed", "total"])
def _backward_queries_kernel(
    Q, K, V, Bias, Lse, Weights, GradOut, GradReceived, Delta, Sums, GradQ, Starts, Counts,
    q_row, q_head, k_row, k_head, v_row, v_head,
    total, width, scale, dropout, seed,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, HAS_RECEIVED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries; completes ``Delta``, the sum over the keys of P · dP of each query."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    count = tl.load(Counts + sequence).to(tl.int32)
    first = tl.program_id(0) * BLOCK_M
    if first >= count:
        return
    start = tl.load(Starts + sequence)
    query = first + tl.arange(0, BLOCK_M)
    rows = start + query
    feature = tl.arange(0, BLOCK_D)
    real = feature[None, :] < SIZE
    inside = (query[:, None] < count) & real
    q = tl.load(Q + rows[:, None] * q_row + head * q_head + feature[None, :], mask=inside, other=0.0)
    grad_out = tl.load(GradOut + (rows[:, None] * HEADS + head) * SIZE + feature[None, :], mask=inside, other=0.0)
    lse = tl.load(Lse + rows * HEADS + head, mask=query < count, other=float("inf"))
    delta = tl.load(Delta + rows * HEADS + head, mask=query < count, other=0.0)
    weights = tl.load(Weights + rows, mask=query < count, other=0.0) if HAS_WEIGHTS else 1.0
    if HAS_RECEIVED:  # Σ_j P(i, j) dR(j)
        received = GradReceived + (sequence * HEADS + head).to(tl.int64) * width
        sums = tl.zeros((BLOCK_M,), tl.float32)
        for offset in range(0, count, BLOCK_N):
            column = offset + tl.arange(0, BLOCK_N)
            key = (start + column)[:, None]
            k = tl.load(
                K + key * k_row + head * k_head + feature[None, :],
                mask=(column[:, None] < count) & real,
                other=0.0,
            )
            bias = tl.load(Bias + start + column, mask=column < count, other=0.0) if HAS_BIAS else 0.0
            probs = tl.exp(_logits(q, k, bias, column, count, scale, HAS_BIAS) - lse[:, None])
            sums += tl.sum(probs * tl.load(received + column, mask=column < count, other=0.0)[None, :], axis=1)
        delta += weights * sums
        tl.store(Sums + rows * HEADS + head, sums, mask=query < count)
        tl.store(Delta + rows * HEADS + head, delta, mask=query < count)
    grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for offset in range(0, count, BLOCK_N):
        column = offset + tl.arange(0, BLOCK_N)
        key = (start + column)[:, None]
        k = tl.load(
            K + key * k_row + head * k_head + feature[None, :],
            mask=(column[:, None] < count) & real,
            other=0.0,
        )
        v = tl.load(
            V + key * v_row + head * v_head + feature[None, :],
            mask=(column[:, None] < count) & real,
            other=0.0,
        )
        bias = tl.load(Bias + start + column, mask=column < count, other=0.0) if HAS_BIAS else 0.0
        probs = tl.exp(_logits(q, k, bias, column, count, scale, HAS_BIAS) - lse[:, None])
        grad_probs = tl.dot(grad_out, tl.trans(v), input_precision="ieee")
        if HAS_DROPOUT:
            kept = _kept(seed, head, rows, column, total, width, dropout)
            grad_probs = tl.where(kept, grad_probs / (1 - dropout), 0.0)
        if HAS_RECEIVED:
            grad_received = tl.load(received + column, mask=column < count, other=0.0)[None, :]
            if HAS_WEIGHTS:
                grad_probs += weights[:, None] * grad_received
            else:
                grad_probs += grad_received
        grad_logits = probs * (grad_probs - delta[:, None])
        grad += tl.dot(grad_logits.to(k.dtype), k, input_precision="ieee")
    tl.store(
        GradQ + (rows[:, None] * HEADS + head) * SIZE + feature[None, :],
        (grad * scale).to(GradQ.dtype.element_ty),
        mask=inside,
    )


@triton.jit(do_not_specialize=["seed", "total"])
def _backward_keys_kernel(
    Q, K, V, Bias, Lse, Weights, GradOut, GradReceived, Delta, GradK, GradV, GradBias, Starts, Counts,
    q_row, q_head, k_row, k_head, v_row, v_head,
    total, width, scale, dropout, seed,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, HAS_RECEIVED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, and of the keys' bias."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    count = tl.load(Counts + sequence).to(tl.int32)
    first = tl.program_id(0) * BLOCK_N
    if first >= count:
        return
    start = tl.load(Starts + sequence)
    column = first + tl.arange(0, BLOCK_N)
    keys = start + column
    feature = tl.arange(0, BLOCK_D)
    real = feature[None, :] < SIZE
    inside = (column[:, None] < count) & real
    k = tl.load(K + keys[:, None] * k_row + head * k_head + feature[None, :], mask=inside, other=0.0)
    v = tl.load(V + keys[:, None] * v_row + head * v_head + feature[None, :], mask=inside, other=0.0)
    bias = tl.load(Bias + keys, mask=column < count, other=0.0) if HAS_BIAS else 0.0
    grad_received = 0.0
    if HAS_RECEIVED:
        received = GradReceived + (sequence * HEADS + head).to(tl.int64) * width
        grad_received = tl.load(received + column, mask=column < count, other=0.0)
    grad_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grad_bias = tl.zeros((BLOCK_N,), tl.float32)
    for offset in range(0, count, BLOCK_M):
        query = offset + tl.arange(0, BLOCK_M)
        rows = start + query
        alive = (query[:, None] < count) & real
        q = tl.load(Q + rows[:, None] * q_row + head * q_head + feature[None, :], mask=alive, other=0.0)
        grad_out = tl.load(GradOut + (rows[:, None] * HEADS + head) * SIZE + feature[None, :], mask=alive, other=0.0)
        lse = tl.load(Lse + rows * HEADS + head, mask=query < count, other=float("inf"))
        delta = tl.load(Delta + rows * HEADS + head, mask=query < count, other=0.0)
        probs = tl.exp(_logits(q, k, bias, column, count, scale, HAS_BIAS) - lse[:, None])
        dropped = probs
        grad_probs = tl.dot(grad_out, tl.trans(v), input_precision="ieee")
        if HAS_DROPOUT:
            kept = _kept(seed, head, rows, column, total, width, dropout)
            dropped = tl.where(kept, probs / (1 - dropout), 0.0)
            grad_probs = tl.where(kept, grad_probs / (1 - dropout), 0.0)
        grad_v += tl.dot(tl.trans(dropped).to(grad_out.dtype), grad_out, input_precision="ieee")
        if HAS_RECEIVED:
            if HAS_WEIGHTS:
                weights = tl.load(Weights + rows, mask=query < count, other=0.0)
                grad_probs += weights[:, None] * grad_received[None, :]
            else:
                grad_probs += grad_received[None, :]
        grad_logits = probs * (grad_probs - delta[:, None])
        grad_k += tl.dot(tl.trans(grad_logits).to(q.dtype), q, input_precision="ieee")
        grad_bias += tl.sum(grad_logits, axis=0)
    place = (keys[:, None] * HEADS + head) * SIZE + feature[None, :]
    tl.store(GradK + place, (grad_k * scale).to(GradK.dtype.element_ty), mask=inside)
    tl.store(GradV + place, grad_v.to(GradV.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        tl.store(GradBias + keys * HEADS + head, grad_bias, mask=column < count)


def _blocks(width: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """Choose the block sizes: of a few warps, so that short sequences waste little."""
    largest = 32 if dtype == torch.float32 or size > 64 else 64
    block = min(largest, max(16, triton.next_power_of_2(width)))
    return {"BLOCK_M": block, "BLOCK_N": block, "num_warps": 4 if block >= 64 else 2, "num_stages": 2}


def _block_size(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def forward(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, counts: Tensor, width: int, *,
    bias: Tensor | None = None, dropout: float = 0.0, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention within each sequence.

    Args:
        query, key, value: (T, H, D/H), adjacent along the last dimension.
        starts, counts: first row and number of rows of each sequence, (B,) integers on the device.
        width: at least the length of the longest sequence.
        bias: added to the logits of each key, (T,) float32; None for 0.
        dropout: probability of dropping an attention weight.
        seed: of the dropout.

    Returns:
        The context, (T, H, D/H), and each query's log-sum-exp, (T, H) float32. Rows of no sequence are not written.
    """
    total, heads, size = query.shape
    context = torch.empty(total, heads, size, dtype=value.dtype, device=value.device)
    lse = torch.empty(total, heads, dtype=torch.float32, device=value.device)
    blocks = _blocks(width, size, query.dtype)
    grid = (triton.cdiv(width, blocks["BLOCK_M"]), heads, len(counts))
    _forward_kernel[grid](
        query, key, value, bias, context, lse, starts, counts, *_strides(query, key, value),
        total, width, size**-0.5, dropout, seed,
        HEADS=heads, SIZE=size, BLOCK_D=_block_size(size), HAS_BIAS=bias is not None, HAS_DROPOUT=dropout > 0, **blocks,
    )  # fmt: skip
    return context, lse


def received_by_head(
    query: Tensor, key: Tensor, lse: Tensor, starts: Tensor, counts: Tensor, width: int, *,
    bias: Tensor | None = None, query_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Sum the attention probabilities (before dropout) that each key receives, over the queries of its sequence.

    Args:
        query, key, lse, starts, counts, width, bias: as in :func:`forward`, which gives ``lse``.
        query_weights: weights of the queries in the sum, (T,) float32; None for 1.

    Returns:
        (B, H, width) float32, 0 where there is no token.
    """
    _, heads, size = query.shape
    received = torch.empty(len(counts), heads, width, dtype=torch.float32, device=query.device)
    blocks = _blocks(width, size, query.dtype)
    grid = (triton.cdiv(width, blocks["BLOCK_N"]), heads, len(counts))
    _received_kernel[grid](
        query, key, bias, lse, query_weights, received, starts, counts, *_strides(query, key), width, size**-0.5,
        HEADS=heads, SIZE=size, BLOCK_D=_block_size(size), HAS_BIAS=bias is not None,
        HAS_WEIGHTS=query_weights is not None, **blocks,
    )  # fmt: skip
    return received


class _PackedAttention(torch.autograd.Function):
    """:func:`forward` and :func:`received_by_head` with gradients."""

    @staticmethod
    def forward(ctx: Any, query, key, value, bias, weights, starts, counts, width, dropout, seed, reads):
        context, lse = forward(query, key, value, starts, counts, width, bias=bias, dropout=dropout, seed=seed)
        received = None
        if reads:
            received = received_by_head(query, key, lse, starts, counts, width, bias=bias, query_weights=weights)
        ctx.save_for_backward(query, key, value, bias, weights, starts, counts, context, lse)
        ctx.settings = (width, dropout, seed)
        ctx.set_materialize_grads(False)
        return context, lse, received

    @staticmethod
    def backward(ctx: Any, grad_context, grad_lse, grad_received):
        query, key, value, bias, weights, starts, counts, context, lse = ctx.saved_tensors
        width, dropout, seed = ctx.settings
        total, heads, size = query.shape
        grad_context = torch.zeros_like(context) if grad_context is None else grad_context.contiguous()
        delta = (grad_context.float() * context.float()).sum(dim=-1)  # (T, H)
        if grad_lse is not None:  # d lse(i) / d logit(i, j) = P(i, j)
            delta = delta - grad_lse
        has_received = grad_received is not None
        grad_received = grad_received.contiguous() if has_received else None
        sums = torch.empty_like(delta) if has_received else None
        grads = [torch.empty(total, heads, size, dtype=x.dtype, device=x.device) for x in (query, key, value)]
        grad_bias = None if bias is None else torch.empty_like(delta)
        blocks = _blocks(width, size, query.dtype)
        grid = (triton.cdiv(width, blocks["BLOCK_M"]), heads, len(counts))
        shared = (*_strides(query, key, value), total, width, size**-0.5, dropout, seed)
        settings = {
            "HEADS": heads,
            "SIZE": size,
            "BLOCK_D": _block_size(size),
            "HAS_BIAS": bias is not None,
            "HAS_DROPOUT": dropout > 0,
            "HAS_WEIGHTS": weights is not None,
            "HAS_RECEIVED": has_received,
            **blocks,
        }
        inputs = (query, key, value, bias, lse, weights, grad_context, grad_received, delta)
        _backward_queries_kernel[grid](*inputs, sums, grads[0], starts, counts, *shared, **settings)
        _backward_keys_kernel[grid](*inputs, *grads[1:], grad_bias, starts, counts, *shared, **settings)
        grad_bias = None if grad_bias is None else grad_bias.sum(dim=1)
        grad_weights = sums.sum(dim=1) if sums is not None and weights is not None else None
        return (*grads, grad_bias, grad_weights, None, None, None, None, None, None)


def attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, counts: Tensor, width: int, *,
    bias: Tensor | None = None, query_weights: Tensor | None = None, dropout: float = 0.0, seed: int = 0,
    received: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Compute attention within each sequence, differentiable in all tensors of floats.

    Args:
        query, key, value, starts, counts, width, bias, query_weights, dropout, seed: as in :func:`forward` and
            :func:`received_by_head`.
        received: whether to compute the attention received.

    Returns:
        The context, (T, H, D/H); the log-sum-exp of each query, (T, H) float32; and the attention received in each
        head, (B, H, width) float32, or None.
    """
    return _PackedAttention.apply(
        query, key, value, bias, query_weights, starts, counts, width, dropout, seed, received
    )
