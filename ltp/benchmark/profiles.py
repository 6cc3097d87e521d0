"""Thresholds that give a model a target cost (relative FLOPs) on given sequences.

The scores of a random model are meaningless, and its speed depends only on the number of tokens alive in each layer.
So a profile is prescribed: on average a share ``rho^l`` of the tokens survives layer l, and each layer's threshold is
the quantile of the scores that gives this share. Pruning is then by thresholds as usual, so sequences keep different
numbers of tokens.
"""

import torch
from torch import Tensor

from ltp.data.sequences import Batch
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.pruning import untrained
from ltp.pruning.pruner import Pruner
from ltp.pruning.tokens import Tokens

TOLERANCE = 0.005  # of relative FLOPs, at which the search stops
_MIN_RHO = 0.01  # below it only the classification token is left after layer 1


def profile_lengths(lengths: Tensor, rho: float, num_layers: int) -> Tensor:
    """Tokens alive under a profile, (B, L+1) float64: n at first, then ``max(1, rho^l · n)`` after layer l."""
    shares = rho ** torch.arange(num_layers + 1, dtype=torch.float64)
    return (lengths.double()[:, None] * shares).clamp(min=1)


class QuantilePruner(Pruner):
    """Set each layer's threshold to the quantile of its scores at which the profile's share of all tokens survives.

    The batch must hold all sequences.

    Args:
        rho: the profile's parameter: a share rho^l of the tokens survives layer l.
        pruner: a pruner with thresholds, whose scores are used.
    """

    def __init__(self, rho: float, pruner: Pruner) -> None:
        super().__init__(pruner.method, pruner.shape, sliding_layers=pruner.sliding_layers)
        self.rho, self.pruner = rho, pruner
        self.found = torch.zeros(pruner.shape.num_layers)

    def survivors(self, tokens: Tokens) -> Tensor:
        """Choose the layer's threshold, and apply it."""
        scores = self.pruner.scores(tokens)
        candidates = tokens.candidates
        keep = (tokens.lengths.double() * self.rho**tokens.layer).clamp(min=1).sum() - len(tokens.lengths)
        threshold = split_point(scores[candidates], round(float(keep)))
        self.found[tokens.layer - 1] = threshold
        survivors = candidates & (scores >= threshold)
        survivors[:, 0] = True
        return survivors


def split_point(scores: Tensor, keep: int) -> float:
    """A threshold that about ``keep`` of the scores reach, in the middle of a gap between two adjacent scores.

    Takes the widest gap within 0.5 % of the ranks around ``keep``, so that rounding in other engines does not change
    which tokens survive.

    Args:
        scores: (T,) float32.
        keep: target number of scores at or above the threshold.
    """
    ordered = scores.sort(descending=True).values
    if keep >= len(ordered):
        return 0.0
    if keep <= 0:
        return 2 * float(ordered[0])
    slack = max(1, len(ordered) // 200)
    first, last = max(keep - slack, 1), min(keep + slack, len(ordered) - 1)
    gaps = ordered[first - 1 : last] - ordered[first : last + 1]
    index = first + int(gaps.argmax())
    return float((ordered[index - 1] + ordered[index]) / 2)


def lowest_reachable_flops(model: LTPPreTrainedModel, lengths: Tensor) -> float:
    """The smallest relative FLOPs of any profile on sequences of these lengths, (B,)."""
    config = model.config
    shortest = profile_lengths(lengths, _MIN_RHO, config.num_hidden_layers)
    return model.cost.total_relative_flops(shortest)


@torch.no_grad()
def set_profile_thresholds(model: LTPPreTrainedModel, sequences: Batch, relative_flops: float) -> float:
    """Set a model's thresholds so that these sequences cost a target share of their dense FLOPs.

    Args:
        model: any classifier, in evaluation mode; its method is replaced by one with thresholds.
        sequences: all sequences, in one batch.
        relative_flops: the target, between :func:`lowest_reachable_flops` and 1.

    Returns:
        The relative FLOPs reached: within 0.02 of the target for a hundred sequences.

    Raises:
        ValueError: ``relative_flops`` is below the lowest reachable one or above 1.
    """
    num_layers = model.config.num_hidden_layers
    lengths = sequences["attention_mask"].sum(dim=1).cpu()
    if not lowest_reachable_flops(model, lengths) <= relative_flops <= 1:
        raise ValueError(
            f"relative_flops is {relative_flops}; it must be in [{lowest_reachable_flops(model, lengths):.3f}, 1]"
        )

    def rho_for(target: float) -> float:
        """The rho whose profile costs the target, by bisection."""
        low, high = _MIN_RHO, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            cost = model.cost.total_relative_flops(profile_lengths(lengths, middle, num_layers))
            low, high = (middle, high) if cost < target else (low, middle)
        return (low + high) / 2

    if model.thresholds is None:
        model.set_pruning(prune_mode=untrained()["prune_mode"])
    pruner = model.pruner
    target, best = relative_flops, (float("inf"), torch.zeros(0), 1.0)
    for _ in range(4):  # long and short sequences may keep different shares: correct the target by the error
        quantiles = QuantilePruner(rho_for(target), pruner)
        model.pruner = quantiles
        reached = model.cost.total_relative_flops(model(**sequences).token_lengths.cpu())
        best = min(best, (abs(reached - relative_flops), quantiles.found, reached), key=lambda item: item[0])
        if best[0] <= TOLERANCE:
            break
        target = min(max(target + relative_flops - reached, 0.0), 1.0)
    assert pruner.own_thresholds is not None
    pruner.own_thresholds.copy_(best[1])
    model.pruner = pruner.eval()
    return best[2]
