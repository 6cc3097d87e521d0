"""FLOPs of a forward pass, computed from the number of tokens alive in each layer.

One MAC is one multiply-add; FLOPs = 2 MACs. Layer l of one example costs ``4·D²·n_l + 2·D·n_l²`` MACs (the four
projections and the two attention products, on the n_l tokens that enter) plus ``2·D·I·n_{l+1}`` (the FFN, on the
tokens that the layer keeps). Embeddings, pooler and head are not counted: they are the same for every method. This is
the usual count of the literature, with the actual FFN width I.
"""

import torch
from torch import Tensor

DEFINITION = (
    "FLOPs = 2 MACs; per layer 4·D²·n + 2·D·n² MACs on the n tokens that enter and 2·D·I·m on the m that survive; "
    "embeddings, pooler and head left out; dense = the same example without pruning and without padding"
)


def layer_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """Compute the FLOPs of each layer for each example.

    Args:
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1), integer or float. The cost is
            quadratic, so a row must be one example (or its expected lengths), not a mean over examples.
        hidden_size: D.
        intermediate_size: I, the width of the FFN.

    Returns:
        (B, L) float64, in FLOPs.
    """
    lengths = token_lengths.to(torch.float64)
    entering, surviving = lengths[:, :-1], lengths[:, 1:]
    attention = 4 * hidden_size**2 * entering + 2 * hidden_size * entering**2
    feed_forward = 2 * hidden_size * intermediate_size * surviving
    return 2 * (attention + feed_forward)


def dense_layer_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> Tensor:
    """Compute the FLOPs of each layer without pruning and without padding.

    Args:
        lengths: number of real tokens n of each example, (B,).

    Returns:
        (B, L) float64, in FLOPs.
    """
    return layer_flops(lengths[:, None].expand(-1, num_layers + 1), hidden_size, intermediate_size)


def mean_dense_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> float:
    """Compute the mean FLOPs per example without pruning; ``lengths``, (B,), are the numbers of real tokens."""
    return float(dense_layer_flops(lengths, num_layers, hidden_size, intermediate_size).sum(dim=1).mean())


def relative_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """Compute the FLOPs of each example divided by its dense FLOPs without padding, (B,) float64 in (0, 1]."""
    cost, dense = flops_and_dense(token_lengths, hidden_size, intermediate_size)
    return cost / dense


def total_relative_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """Compute the FLOPs of all examples divided by their dense FLOPs, as in ``results.json``: scalar float64."""
    cost, dense = flops_and_dense(token_lengths, hidden_size, intermediate_size)
    return cost.sum() / dense.sum()


def lowest_relative_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> float:
    """Compute the relative FLOPs if only the classification token survives the first layer: the lower bound.

    Args:
        lengths: number of real tokens n of each example, (B,).
    """
    fewest = torch.ones(len(lengths), num_layers + 1, dtype=torch.float64)
    fewest[:, 0] = lengths
    return float(total_relative_flops(fewest, hidden_size, intermediate_size))


def flops_and_dense(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> tuple[Tensor, Tensor]:
    """Compute the FLOPs of each example and its dense FLOPs without padding, each (B,) float64."""
    num_layers = token_lengths.shape[1] - 1
    cost = layer_flops(token_lengths, hidden_size, intermediate_size).sum(dim=1)
    dense = dense_layer_flops(token_lengths[:, 0], num_layers, hidden_size, intermediate_size).sum(dim=1)
    return cost, dense
