"""The cost of a forward pass, from the tokens alive in each layer.

One MAC is one multiply-add; FLOPs = 2 MACs. Layer l of one example costs ``4·D²·n_l + 2·D·n_l²`` MACs (the four
projections and the two attention products, on the n_l tokens that enter) plus ``2·D·I·n_{l+1}`` (the FFN, on the
survivors). Embeddings, pooler and head are left out: they are the same for every method. This is the literature's
count, with the true FFN width I.
"""

import torch
from torch import Tensor

DEFINITION = (
    "FLOPs = 2 MACs; per layer 4·D²·n + 2·D·n² MACs on the n tokens that enter and 2·D·I·m on the m that survive; "
    "embeddings, pooler and head left out; dense = the same example without pruning and without padding"
)


def layer_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """FLOPs of each layer for each example.

    Args:
        token_lengths: tokens alive entering each layer, and after the last, (B, L+1), integer or float (mean or
            expected lengths are allowed only one example at a time: the count is quadratic).
        hidden_size: D.
        intermediate_size: I, the FFN's width.

    Returns:
        (B, L) float64, in FLOPs.
    """
    lengths = token_lengths.to(torch.float64)
    entering, surviving = lengths[:, :-1], lengths[:, 1:]
    attention = 4 * hidden_size**2 * entering + 2 * hidden_size * entering**2
    feed_forward = 2 * hidden_size * intermediate_size * surviving
    return 2 * (attention + feed_forward)


def dense_layer_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> Tensor:
    """FLOPs of each layer when nothing is pruned, without padding.

    Args:
        lengths: real tokens n of each example, (B,).

    Returns:
        (B, L) float64, in FLOPs.
    """
    return layer_flops(lengths[:, None].expand(-1, num_layers + 1), hidden_size, intermediate_size)


def mean_dense_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> float:
    """FLOPs of an example when nothing is pruned, on average over examples with n real tokens each, (B,)."""
    return float(dense_layer_flops(lengths, num_layers, hidden_size, intermediate_size).sum(dim=1).mean())


def relative_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """Cost of each example divided by its dense cost without padding, (B,) float64 in (0, 1]."""
    cost, dense = flops_and_dense(token_lengths, hidden_size, intermediate_size)
    return cost / dense


def total_relative_flops(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> Tensor:
    """Cost of all examples divided by their dense cost: what results report, a scalar float64 in (0, 1]."""
    cost, dense = flops_and_dense(token_lengths, hidden_size, intermediate_size)
    return cost.sum() / dense.sum()


def lowest_relative_flops(lengths: Tensor, num_layers: int, hidden_size: int, intermediate_size: int) -> float:
    """What examples cost, over their dense cost, where only the classification token survives the first layer.

    Args:
        lengths: real tokens n of each example, (B,).
    """
    fewest = torch.ones(len(lengths), num_layers + 1, dtype=torch.float64)
    fewest[:, 0] = lengths
    return float(total_relative_flops(fewest, hidden_size, intermediate_size))


def flops_and_dense(token_lengths: Tensor, hidden_size: int, intermediate_size: int) -> tuple[Tensor, Tensor]:
    """FLOPs of each example, and those of its dense pass without padding, each (B,) float64."""
    num_layers = token_lengths.shape[1] - 1
    cost = layer_flops(token_lengths, hidden_size, intermediate_size).sum(dim=1)
    dense = dense_layer_flops(token_lengths[:, 0], num_layers, hidden_size, intermediate_size).sum(dim=1)
    return cost, dense
