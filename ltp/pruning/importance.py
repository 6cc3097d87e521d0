"""Token importance: what attention gives each token (LTP §3.1 and variants of it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltp.pruning.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens

#: Scores of a token j, from attention probabilities A[h, i, j] before dropout, averaged over the H heads. Sums are over
#: the queries i that are alive.
#:
#: - ``mean``: the attention received, ``1/Z Σ_i A[i, j]``, with a constant Z (LTP);
#: - ``mean_norm``: the same, with the number of tokens alive as Z;
#: - ``max_norm``: the same, divided by the largest of the input's scores (the official code's ``threshold`` modes);
#: - ``off_diagonal``: ``mean`` without the attention that j pays to itself (PoWER-BERT);
#: - ``class``: what the classification token pays to j (EViT);
#: - ``cumulated``: ``mean``, summed over the layers so far (SpAtten);
#: - ``value_weighted``: ``mean``, each head times the norm of j's value in it.
SCORING_MODES = ("mean", "mean_norm", "max_norm", "off_diagonal", "class", "cumulated", "value_weighted")

_READ = {
    "off_diagonal": frozenset({"received", "diagonal"}),
    "class": frozenset({"class_attention"}),
    "value_weighted": frozenset({"value_weighted"}),
}
#: What of attention a method may read: sums over heads and queries.
ATTENTION_READS = frozenset({"received", "diagonal", "class_attention", "value_weighted"})


def read_by(scoring_mode: str) -> frozenset[str]:
    """Return what a scoring mode reads of a layer."""
    return _READ.get(scoring_mode, frozenset({"received"}))


def is_cumulated(scoring_mode: str) -> bool:
    """Whether a scoring mode adds to the scores of the layer before."""
    return scoring_mode == "cumulated"


def importance_of(tokens: Tokens, scoring_mode: str, score_length: int) -> Tensor:
    """Compute the importance of every token.

    A score depends neither on padding nor on the rest of the batch.

    Args:
        tokens: the tokens of a layer.
        scoring_mode: one of :data:`SCORING_MODES`.
        score_length: the constant Z, in tokens (128 on GLUE): a token that receives the mean attention of its sentence
            has the score 1/Z at any sentence length.

    Returns:
        Scores, (B, N) float32; 0 for tokens that are not alive (no query attends to them).
    """
    if scoring_mode == "mean":
        return tokens.received / (tokens.heads * score_length)
    if scoring_mode == "mean_norm":
        return tokens.received / (tokens.heads * tokens.presence.sum(dim=1, keepdim=True))
    if scoring_mode == "max_norm":
        return tokens.received / tokens.received.amax(dim=1, keepdim=True)
    if scoring_mode == "off_diagonal":
        return (tokens.received - tokens.diagonal) / (tokens.heads * score_length)
    if scoring_mode == "class":
        return tokens.class_attention / tokens.heads
    if scoring_mode == "cumulated":
        score = tokens.received / (tokens.heads * score_length)
        return score if tokens.carried is None else score + tokens.carried
    if scoring_mode == "value_weighted":
        return tokens.value_weighted / (tokens.heads * score_length)
    raise ValueError(f"scoring_mode is {scoring_mode!r}; it must be one of {', '.join(SCORING_MODES)}")


def attention_sums(
    probs: Tensor, value: Tensor, presence: Tensor | None, reads: frozenset[str], first: int = 0
) -> dict[str, Tensor]:
    """Sum what attention gives each token over heads and queries.

    Args:
        probs: attention probabilities before dropout, (B, H, Q, N), any float type; rows are queries.
        value: (B, H, N, D/H).
        presence: weights of the queries: tokens alive, (B, Q) bool, or their survival probabilities, (B, Q) float32;
            None if all are alive.
        reads: what to compute; see :data:`ATTENTION_READS`. Other names are ignored.
        first: which of the N tokens the first query is: the queries may be a part of them.

    Returns:
        Sums by name, each (B, N) float32.
    """
    sums: dict[str, Tensor] = {}
    with torch.autocast(probs.device.type, enabled=False):  # in half precision the sums would be rounded
        if "received" in reads and "value_weighted" not in reads and presence is None:
            sums["received"] = probs.sum(dim=(1, 2), dtype=torch.float32)
        elif reads & {"received", "value_weighted"}:
            if presence is None:
                by_head = probs.sum(dim=2, dtype=torch.float32)  # (B, H, N)
            else:
                by_head = (presence.float()[:, None, None, :] @ probs.float()).squeeze(2)
            if "received" in reads:
                sums["received"] = by_head.sum(dim=1)
            if "value_weighted" in reads:
                sums["value_weighted"] = (by_head * value.float().norm(dim=-1)).sum(dim=1)
        if "diagonal" in reads:
            diagonal = probs.diagonal(offset=first, dim1=-2, dim2=-1).sum(dim=1, dtype=torch.float32)
            diagonal = diagonal if presence is None else diagonal * presence
            after = probs.shape[3] - first - probs.shape[2]
            sums["diagonal"] = torch.nn.functional.pad(diagonal, (first, after)) if first or after > 0 else diagonal
        if "class_attention" in reads:
            class_attention = probs[:, :, 0].sum(dim=1, dtype=torch.float32)
            sums["class_attention"] = class_attention if first == 0 else torch.zeros_like(class_attention)
    return sums
