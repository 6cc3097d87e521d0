"""Products and norms of packed rows in Triton, and the removal of tokens, for inference on a GPU.

The number of rows is read on the device, so that the host never waits for it: a program whose rows are not in use
returns at once. Memory is reserved for the largest number of rows; the rows beyond are not written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Activations that a product can apply to its result.
ACTIVATIONS = {"": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


@triton.jit
def _linear_kernel(
    X, W, Bias, Residual, Index, Count, Out, columns, x_row,
    DEPTH: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_INDEX: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # neighbouring programs share rows of X and W in the L2 cache; blocks of rows in use come first
    row_blocks, column_blocks = tl.num_programs(0) // tl.cdiv(columns, BLOCK_N), tl.cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    row_block = group * GROUP + (program % (GROUP * column_blocks)) % height
    column_block = (program % (GROUP * column_blocks)) // height
    count = tl.load(Count).to(tl.int32)
    if row_block * BLOCK_M >= count:
        return
    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    alive = row < count
    source = tl.load(Index + row, mask=alive, other=0) if HAS_INDEX else tl.where(alive, row, 0)
    source = source.to(tl.int64)
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < columns
    depth = tl.arange(0, BLOCK_K)
    x = X + source[:, None] * x_row + depth[None, :]
    w = W + tl.where(inside, column, 0)[:, None] * DEPTH + depth[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for offset in range(0, DEPTH, BLOCK_K):
        if DEPTH % BLOCK_K == 0:
            left, right = tl.load(x), tl.load(w)
        else:
            within = depth[None, :] < DEPTH - offset
            left, right = tl.load(x, mask=within, other=0.0), tl.load(w, mask=within, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
        x += BLOCK_K
        w += BLOCK_K
    total += tl.load(Bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        total = 0.5 * total * (1 + tl.erf(total * 0.7071067811865476))
    if ACTIVATION == 2:
        total = total * tl.sigmoid(1.5957691216057308 * (total + 0.044715 * total * total * total))
    if ACTIVATION == 3:
        total = tl.maximum(total, 0.0)
    mask = alive[:, None] & inside[None, :]
    if HAS_RESIDUAL:
        residual = Residual + source[:, None] * columns + column[None, :]
        total += tl.load(residual, mask=mask, other=0.0).to(tl.float32)
    tl.store(Out + row.to(tl.int64)[:, None] * columns + column[None, :], total.to(Out.dtype.element_ty), mask=mask)


def linear_blocks(rows: int, dtype: torch.dtype) -> dict[str, int]:
    """Choose the block sizes of a product from the largest number of its rows, as was fastest on an H200."""
    if dtype == torch.float32:
        return {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
    if rows <= 32:
        return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}
    if rows <= 512:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}
    if rows <= 1024:
        return {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor, count: Tensor, *, index: Tensor | None = None,
    residual: Tensor | None = None, activation: str = "",
) -> Tensor:  # fmt: skip
    """Compute ``activation(x Wᵀ + b) + residual`` of the first ``count`` rows.

    Args:
        rows: x, (R, in), or the rows that ``index`` selects.
        weight, bias: W, (out, in) contiguous, and b, (out,).
        count: number of rows in use, (1,) integer on the device.
        index: rows of ``rows`` and ``residual`` to take, (R',) integers; None for the first ones.
        residual: (R, out); None for 0.
        activation: one of :data:`ACTIVATIONS`.

    Returns:
        (R', out), or (R, out); rows from ``count`` on are not written.
    """
    columns, depth = weight.shape
    capacity = len(rows if index is None else index)
    out = torch.empty(capacity, columns, dtype=rows.dtype, device=rows.device)
    blocks = linear_blocks(capacity, rows.dtype)
    grid = (triton.cdiv(capacity, blocks["BLOCK_M"]) * triton.cdiv(columns, blocks["BLOCK_N"]),)
    _linear_kernel[grid](
        rows, weight, bias, residual, index, count, out, columns, rows.stride(0),
        DEPTH=depth, HAS_RESIDUAL=residual is not None, HAS_INDEX=index is not None,
        ACTIVATION=ACTIVATIONS[activation], GROUP=8, **blocks,
    )  # fmt: skip
    return out


@triton.jit
def _norm_kernel(X, Weight, Bias, Count, Out, epsilon, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if row >= tl.load(Count).to(tl.int32):
        return
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    place = row.to(tl.int64) * SIZE + column
    x = tl.load(X + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, axis=0) / SIZE, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, axis=0) / SIZE + epsilon)
    weight = tl.load(Weight + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(Bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(Out + place, (centred / deviation * weight + bias).to(Out.dtype.element_ty), mask=inside)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, epsilon: float, count: Tensor) -> Tensor:
    """Normalise the first ``count`` rows, (R, D); the others are not written."""
    out = torch.empty_like(rows)
    size = rows.shape[1]
    block = triton.next_power_of_2(size)
    _norm_kernel[(len(rows),)](
        rows, weight, bias, count, out, epsilon, SIZE=size, BLOCK=block, num_warps=min(8, max(1, block // 256))
    )
    return out


@triton.jit
def _compact_kernel(
    Survivors, NewCounts, Starts, Counts, NewStarts, Kept, Alive, Total, sequences, width,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    before = tl.zeros((BLOCK_B,), tl.int64)
    for offset in range(0, sequence, BLOCK_B):
        other = offset + tl.arange(0, BLOCK_B)
        before += tl.load(NewCounts + other, mask=other < sequence, other=0)
    first = tl.sum(before, axis=0)
    count = tl.load(NewCounts + sequence)
    tl.store(NewStarts + sequence, first)
    if sequence == sequences - 1:
        tl.store(Total, first + count)
    column = tl.arange(0, BLOCK_N)
    survives = tl.load(Survivors + sequence * width + column, mask=column < width, other=0).to(tl.int32)
    place = first + tl.cumsum(survives, axis=0) - 1
    tl.store(Kept + place, tl.load(Starts + sequence) + column, mask=survives > 0)
    tl.store(Alive + sequence * width + column, (column < count).to(tl.uint8), mask=column < width)


def compact(survivors: Tensor, starts: Tensor, counts: Tensor, capacity: int) -> tuple[Tensor, ...]:
    """Drop all tokens of a packed batch but the survivors.

    Args:
        survivors: the tokens to keep, (B, N) bool, left-aligned as the packed sequences are.
        starts, counts: first row and number of rows of each sequence, (B,) int64.
        capacity: T, the largest number of rows.

    Returns:
        Of the survivors: starts and counts; their rows before, (T,) int64, of which the first total are written, the
        others 0; the tokens alive, (B, N) bool; and the total, (1,) int64.
    """
    sequences, width = survivors.shape
    new_counts = survivors.sum(dim=1)
    new_starts = torch.empty_like(new_counts)
    kept = torch.zeros(capacity, dtype=torch.int64, device=survivors.device)
    alive = torch.empty(sequences, width, dtype=torch.bool, device=survivors.device)
    total = torch.empty(1, dtype=torch.int64, device=survivors.device)
    _compact_kernel[(sequences,)](
        survivors.contiguous().view(torch.uint8), new_counts, starts, counts, new_starts, kept,
        alive.view(torch.uint8), total, sequences, width,
        BLOCK_B=64, BLOCK_N=triton.next_power_of_2(width), num_warps=1 if width <= 128 else 4,
    )  # fmt: skip
    return new_starts, new_counts, kept, alive, total
