"""Thresholds that give a model a wished cost on given sequences.

A random model's scores mean nothing, and a shape's speed depends only on how many tokens are alive where. So a
profile is wished: a share ``rho^l`` of each input's tokens survives layer l, and the thresholds are the quantiles of
the scores that give it. The pruning itself is the ordinary learned-threshold one: each sequence keeps another number.
"""

import torch
from torch import Tensor

from ltp.data.sequences import Batch
from ltp.model.classifier import LTPForSequenceClassification
from ltp.pruning.base import Pruner
from ltp.pruning.flops import total_relative_flops
from ltp.pruning.threshold import ThresholdPruner

TOLERANCE = 0.005  # of relative FLOPs, where the search stops
_SMALLEST = 0.01  # rho below which nothing but the classification token is left after layer 1


def profile_lengths(lengths: Tensor, rho: float, num_layers: int) -> Tensor:
    """Tokens alive under a profile: ``max(1, rho^l · n)`` after layer l, (B, L+1) float64, n in the first column."""
    shares = rho ** torch.arange(num_layers + 1, dtype=torch.float64)
    return (lengths.double()[:, None] * shares).clamp(min=1)


class QuantilePruner(Pruner):
    """Sets each layer's threshold from the scores it sees, so that the profile's share of all tokens survives.

    It must see all sequences in one batch.

    Args:
        rho: the profile: a share rho^l of the tokens survives layer l.
        num_layers: L.
    """

    prune_mode = "quantile"

    def __init__(self, rho: float, num_layers: int) -> None:
        super().__init__()
        self.rho = rho
        self.thresholds = torch.zeros(num_layers)

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        others = alive.clone()
        others[:, 0] = False  # the classification tokens survive anyway
        wanted = (lengths.double() * self.rho**layer).clamp(min=1).sum() - len(lengths)
        threshold = split_point(scores[others], round(float(wanted)))
        self.thresholds[layer - 1] = threshold
        survivors = others & (scores >= threshold)
        survivors[:, 0] = True
        return survivors


def split_point(scores: Tensor, keep: int) -> float:
    """A threshold that about ``keep`` of the scores reach, in the middle of a gap between two of them.

    Of the gaps within half a percent of the wished place the widest is taken, so that rounding in another engine
    does not change who survives.

    Args:
        scores: (T,) float32.
        keep: how many of them should survive.
    """
    ordered = scores.sort(descending=True).values
    if keep >= len(ordered):
        return 0.0
    if keep <= 0:
        return 2 * float(ordered[0])
    slack = max(1, len(ordered) // 200)
    first, last = max(keep - slack, 1), min(keep + slack, len(ordered) - 1)
    gaps = ordered[first - 1 : last] - ordered[first : last + 1]
    place = first + int(gaps.argmax())
    return float((ordered[place - 1] + ordered[place]) / 2)


def lowest_reachable_flops(model: LTPForSequenceClassification, lengths: Tensor) -> float:
    """The smallest relative FLOPs that a profile can have on sequences of these lengths, (B,)."""
    config = model.config
    fewest = profile_lengths(lengths, _SMALLEST, config.num_hidden_layers)
    return float(total_relative_flops(fewest, config.hidden_size, config.intermediate_size))


@torch.no_grad()
def set_profile_thresholds(model: LTPForSequenceClassification, sequences: Batch, relative_flops: float) -> float:
    """Give a model thresholds with which these sequences cost a wished share of their dense FLOPs.

    Args:
        model: any pruned classifier, in evaluation mode; its pruner is replaced by thresholds.
        sequences: all of them in one batch.
        relative_flops: the wished cost, between :func:`lowest_reachable_flops` and 1.

    Returns:
        The relative FLOPs that was reached: within 0.02 for a hundred sequences.

    Raises:
        ValueError: no profile is that cheap, or ``relative_flops`` is above 1.
    """
    config = model.config
    lengths = sequences["attention_mask"].sum(dim=1).cpu()
    sizes = (config.hidden_size, config.intermediate_size)
    if not lowest_reachable_flops(model, lengths) <= relative_flops <= 1:
        raise ValueError(
            f"relative_flops is {relative_flops}; it must be in [{lowest_reachable_flops(model, lengths):.3f}, 1]"
        )

    def solve(wanted: float) -> float:
        low, high = _SMALLEST, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            cost = float(total_relative_flops(profile_lengths(lengths, middle, config.num_hidden_layers), *sizes))
            low, high = (middle, high) if cost < wanted else (low, middle)
        return (low + high) / 2

    wanted, best = relative_flops, (float("inf"), torch.zeros(0), 1.0)
    for _ in range(4):  # long sequences may keep another share than short ones: what is missed is aimed for again
        quantiles = QuantilePruner(solve(wanted), config.num_hidden_layers)
        model.pruner = quantiles
        reached = float(total_relative_flops(model(**sequences).token_lengths.cpu(), *sizes))
        best = min(best, (abs(reached - relative_flops), quantiles.thresholds, reached), key=lambda item: item[0])
        if best[0] <= TOLERANCE:
            break
        wanted = min(max(wanted + relative_flops - reached, 0.0), 1.0)
    config.prune_mode = ThresholdPruner.prune_mode
    pruner = ThresholdPruner.from_config(config).to(model.device)
    pruner.thresholds.copy_(best[1])
    model.pruner = pruner.eval()
    return best[2]
