"""Pruning to a given share of the tokens, as in SpAtten's cascade token pruning (arXiv 2012.09852)."""

import math
from typing import Any

from torch import Tensor

from ltp.pruning.base import Pruner


def keep_rates(token_keep_rate: float, num_layers: int) -> list[float]:
    """Compute the keep rates of layers 1..L: 1 in the first max(3, ceil(0.15·L)), then linear to the last rate.

    ``token_keep_rate``, the rate of layer L, may be negative: rates are clipped at 0 only after interpolation, so a
    negative value prunes harder, and the rate reaches 0 before the last layer.

    Returns:
        L shares of the input tokens, in [0, 1].
    """
    dense_layers = max(3, math.ceil(0.15 * num_layers))
    rates = []
    for layer in range(1, num_layers + 1):
        if layer <= dense_layers:
            rates.append(1.0)
        else:
            progress = (layer - dense_layers) / (num_layers - dense_layers)
            rate = max(0.0, 1.0 + (token_keep_rate - 1.0) * progress)
            rates.append(round(rate, 12))  # 0.3, not 0.30000000000000004, which rounds 15 tokens to 5 instead of 4
    return rates


def keep_counts(rate: float, lengths: Tensor) -> Tensor:
    """Compute the number of tokens that a layer keeps: ``max(1, round(rate · n))``, halves rounded to even.

    Args:
        rate: keep rate of the layer.
        lengths: number of real tokens n of each input, (B,) int64.

    Returns:
        (B,) int64.
    """
    return (rate * lengths.double()).round().long().clamp(min=1)


def topk_survivors(scores: Tensor, counts: Tensor, alive: Tensor) -> Tensor:
    """Keep the classification token and the most important tokens, ``counts`` in all; ties go to the earlier token.

    Args:
        scores: importance, (B, N) float32.
        counts: number of tokens to keep, (B,) int64, at least 1.
        alive: tokens alive when the layer starts, (B, N) bool.

    Returns:
        Tokens kept, (B, N) bool; all tokens alive if there are no more than ``counts``.
    """
    ranked = scores.masked_fill(~alive, -math.inf)
    ranked[:, 0] = math.inf
    order = ranked.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # inverse permutation: rank of each token
    return alive & (rank < counts[:, None])


class TopKPruner(Pruner):
    """A fixed keep rate per layer: ``prune_mode: topk``. It has no parameters."""

    prune_mode = "topk"

    def __init__(self, num_layers: int, token_keep_rate: float) -> None:
        super().__init__()
        self.keep_rates = keep_rates(token_keep_rate, num_layers)

    @classmethod
    def from_config(cls, config: Any) -> "TopKPruner":
        return cls(config.num_hidden_layers, config.token_keep_rate)

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        return topk_survivors(scores, keep_counts(self.keep_rates[layer - 1], lengths), alive)
