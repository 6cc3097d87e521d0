"""Token importance: the mean attention that a token receives (LTP §3.1)."""

import torch
from torch import Tensor

from ltp.pruning import SCORING_MODES


def importance(probs: Tensor, alive: Tensor, *, scoring_mode: str = "mean", score_length: int = 128) -> Tensor:
    """Compute the importance ``s(j) = 1/(H·Z) Σ_h Σ_{i alive} A[h,i,j]`` of every token.

    The sum is over queries that are alive, so a score depends neither on padding nor on the rest of the batch.

    Args:
        probs: attention probabilities before dropout, (B, H, N, N), any float type; rows are queries.
        alive: tokens alive when the layer starts, (B, N) bool.
        scoring_mode: ``mean``: Z is ``score_length``, so a token that receives the mean attention of its sentence
            has the score 1/Z at any sentence length; ``mean_norm``: Z is the number of tokens alive.
        score_length: the constant Z, in tokens (128 on GLUE).

    Returns:
        Scores, (B, N) float32; 0 for tokens that are not alive (no query attends to them).
    """
    received = attention_received(probs, alive)
    return normalise(received, alive, probs.shape[1], scoring_mode=scoring_mode, score_length=score_length)


def attention_received(probs: Tensor, alive: Tensor) -> Tensor:
    """Sum the attention that every token receives over the heads and the queries that are alive.

    Args:
        probs: see :func:`importance`.
        alive: tokens alive when the layer starts, (B, N) bool, or their survival probabilities, (B, N) float32,
            which then weight the queries.

    Returns:
        (B, N) float32.
    """
    with torch.autocast(probs.device.type, enabled=False):  # in half precision the sums would be rounded
        queries = alive.float()[:, None, None, :]  # (B, 1, 1, N)
        return (queries @ probs.float()).squeeze(2).sum(dim=1)  # (B, H, 1, N) -> (B, N)


def normalise(received: Tensor, alive: Tensor, heads: int, *, scoring_mode: str, score_length: int) -> Tensor:
    """Divide the attention received (summed over heads and queries) by H·Z, which gives the importance.

    Args:
        received: (B, N) float32.
        alive: tokens alive when the layer starts, (B, N) bool.
        heads: H.
        scoring_mode, score_length: see :func:`importance`.

    Returns:
        Scores, (B, N) float32.
    """
    if scoring_mode == "mean":
        return received / (heads * score_length)
    if scoring_mode == "mean_norm":
        return received / (heads * alive.sum(dim=1, keepdim=True))
    raise ValueError(f"scoring_mode is {scoring_mode!r}; it must be one of {', '.join(SCORING_MODES)}")
