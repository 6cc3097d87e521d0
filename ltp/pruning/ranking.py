"""Keep the best-ranked tokens of each input: counts, ranks, and the shapes of keep rates over the layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ltp.pruning.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Shapes of the keep rates between the first layer that prunes and the last. ``linear``: equal steps. ``constant``: the
#: same share of the tokens that are left in each layer.
SHAPES = ("linear", "constant")


def keep_rates(
    token_keep_rate: float, num_layers: int, *, shape: str = "linear", first_layer: int | None = None
) -> list[float]:
    """Compute the keep rates of layers 1..L: 1 before the first layer that prunes, from there down to the last rate.

    Args:
        token_keep_rate: the rate of layer L. With ``linear`` it may be negative: rates are clipped at 0 only after
            interpolation, so a negative value prunes harder, and the rate reaches 0 before the last layer.
        num_layers: L.
        shape: one of :data:`SHAPES`.
        first_layer: the first layer that prunes; None for the published one, max(3, ceil(0.15·L)) + 1.

    Returns:
        L shares of the input tokens, in [0, 1].
    """
    dense_layers = max(3, math.ceil(0.15 * num_layers)) if first_layer is None else first_layer - 1
    rates = []
    for layer in range(1, num_layers + 1):
        if layer <= dense_layers:
            rates.append(1.0)
            continue
        progress = (layer - dense_layers) / (num_layers - dense_layers)
        if shape == "constant":
            rate = max(0.0, token_keep_rate) ** progress
        else:
            rate = max(0.0, 1.0 + (token_keep_rate - 1.0) * progress)
        rates.append(round(rate, 12))  # 0.3, not 0.30000000000000004, which rounds 15 tokens to 5 instead of 4
    return rates


def keep_counts(rate: float | Tensor, lengths: Tensor) -> Tensor:
    """Compute the number of tokens that a layer keeps: ``max(1, round(rate · n))``, halves rounded to even.

    Args:
        rate: keep rate of the layer, a number or a scalar.
        lengths: number of real tokens n of each input, (B,) int64.

    Returns:
        (B,) int64.
    """
    return share(rate, lengths).round().long().clamp(min=1)


def share(rate: float | Tensor, lengths: Tensor) -> Tensor:
    """Compute ``rate · n`` of lengths n, (B,) int64, in float64.

    On a CPU the rate is a constant tensor: an ONNX graph would round a number to float32, and halves might then go the
    other way.
    """
    if not isinstance(rate, torch.Tensor):
        if lengths.device.type == "cpu":
            rate = torch.tensor(rate, dtype=torch.float64)
        else:  # a copy from the host could not be captured as a CUDA graph
            rate = torch.full((), rate, dtype=torch.float64, device=lengths.device)
    return rate * lengths.double()


def running_min(values: Tensor) -> Tensor:
    """Compute the minimum of each value and those before it, (L,); an ONNX graph cannot hold ``cummin``."""
    numbers = torch.arange(len(values), device=values.device)
    return torch.where(numbers <= numbers[:, None], values, values[:, None]).amin(dim=1)


def ranks(scores: Tensor, alive: Tensor) -> Tensor:
    """Rank the tokens of each input: 0 for the classification token, then by descending score, ties in order.

    Args:
        scores: (B, N) float.
        alive: (B, N) bool.

    Returns:
        (B, N) int64; tokens that are not alive come last.
    """
    ranked = scores.masked_fill(~alive, -math.inf)
    ranked[:, 0] = math.inf
    order = ranked.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)  # the inverse permutation


def keep_highest(scores: Tensor, counts: Tensor, alive: Tensor) -> Tensor:
    """Keep the classification token and the tokens with the highest scores, ``counts`` in all.

    Args:
        scores: (B, N) float.
        counts: number of tokens to keep, (B,) int64, at least 1.
        alive: tokens alive when the layer starts, (B, N) bool.

    Returns:
        Tokens kept, (B, N) bool; all tokens alive if there are no more than ``counts``.
    """
    return alive & (ranks(scores, alive) < counts[:, None])
