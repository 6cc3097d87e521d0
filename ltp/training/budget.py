"""FLOPs budgets in training: the multiplier of a soft training, and sampling one of several budgets per step."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ltp.pruning.flops import CostModel

# Chosen by a few runs on the demo (budget 0.3) and SST-2 (0.3, 0.378 and 0.5). The alternative to the correction was a
# price of lambda + 5 to 10 times the gap: it oscillates, or is too slow when sharp gates have vanishing gradients.
# There is no warm-up: lowering the target to the budget over 60 % of the steps left too few steps at the budget.
# A straight-through estimator (hard pruning in the forward pass, these gradients) was no better after the hard stage:
# 81.4 % instead of 82.0 on SST-2 at 0.3, 86.9 instead of 88.4 at 0.683; 73.5 instead of 73.0 on MRPC at about 0.315
# (means of four seeds).
STEP_SIZE = 0.3  # of the dual ascent: lambda changes by STEP_SIZE * gap
CORRECTION = 0.3  # thresholds are multiplied by exp(CORRECTION * gap); the cost's slope over their logarithm is ≈ −0.3
# Without thresholds to multiply, a price that integrates the gap swings (Transkimmer on SST-2 at 0.5: from 0.09 to 1.08
# of the FLOPs within one epoch). It then is proportional to the gap: the gradient of LTMP's penalty 10 · (E − budget)².
PRICE = 20.0
MEAN_SHARE = 0.3  # weight of a step in the running mean of its cost: a batch has one input length, so costs vary

# With several budgets, low ones need more steps, and what they train also serves the higher ones. Budgets 0.3, 0.5
# and 0.7 on SST-2 (one seed, accuracy in % after the hard stage) gave 80.0, 85.3 and 85.0 with exponent 1; 80.3, 85.2
# and 85.8 with 2; 82.6, 85.6 and 85.7 with 3, each after a soft training at the lowest budget only. After a soft
# training of all three, the lowest gave 65 (68 with every budget in every hard step): weights trained for the higher
# budgets hardly learn to serve it.
HARDER_MORE_OFTEN = 3.0


class BudgetMultiplier(nn.Module):
    """Lagrange multiplier on the expected FLOPs; keeps a soft training at its budget.

    The training minimises ``task loss + lambda · E``, where E is the expected relative FLOPs. After every step
    ``gap = mean E + offset − budget`` and ``lambda += STEP_SIZE · gap`` (dual ascent). Lambda thus converges to the
    price at which no layer's threshold gains by a change: it decides *in which layers* tokens are pruned. *How many*
    are pruned would lag and oscillate, because lambda integrates the gap, and thresholds, which move by at most their
    learning rate per step, integrate lambda. Therefore all thresholds are also multiplied by one factor per step.

    The expected cost of training batches differs from the cost in an evaluation: gates are soft, dropout is on, and
    the texts may be shorter (much shorter on SST-2). The offset is this difference; it is measured periodically.

    All state is in buffers, so checkpoints contain it.

    Args:
        budget: relative FLOPs.
        dense_flops: mean dense FLOPs of a training example. E of a batch is the mean of its examples' FLOPs divided
            by this constant, so that E is additive over micro-batches and processes.
        cost: counts the FLOPs of the model.

    Attributes:
        value: lambda, scalar float64.
        mean: running mean of E, scalar float64; 0 before the first step.
        offset: relative FLOPs of an evaluation minus ``mean``, scalar float64.
    """

    value: Tensor
    mean: Tensor
    offset: Tensor

    def __init__(self, budget: float, *, dense_flops: float, cost: CostModel) -> None:
        super().__init__()
        self.budget = budget
        self.dense_flops = dense_flops
        self.cost = cost
        for name in ("value", "mean", "offset"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self._step_flops = torch.zeros(2, dtype=torch.float64)  # FLOPs and dense FLOPs since the last step

    def penalty(self, expected_lengths: Tensor) -> Tensor:
        """Return ``lambda · E`` of a micro-batch, a mean over its examples.

        Args:
            expected_lengths: expected tokens that enter each layer and leave the last, (B, L+1) float32, with
                gradients.

        Returns:
            Scalar float32.
        """
        cost, dense = self.cost.flops_and_dense(expected_lengths)
        self._step_flops += torch.stack([cost.detach().sum(), dense.detach().sum()]).cpu()
        return (self.value * cost.mean() / self.dense_flops).float()

    @torch.no_grad()
    def update(self, thresholds: Tensor | None, total: Callable[[Tensor], Tensor]) -> float:
        """Update the multiplier, and scale the thresholds, after an optimiser step.

        Args:
            thresholds: (L,) float32, changed in place; None for a method without: lambda is proportional to the gap.
            total: sums a tensor over all processes.

        Returns:
            Expected relative FLOPs of the step.
        """
        cost, dense = total(self._step_flops).tolist()
        self._step_flops.zero_()
        expected = cost / dense
        if self.mean == 0:
            self.mean.fill_(expected)
            if thresholds is not None:  # which were just calibrated, so an evaluation costs the budget
                self.measured(self.budget)
        self.mean += MEAN_SHARE * (expected - self.mean)
        gap = self.mean + self.offset - self.budget
        if thresholds is None:
            self.value.copy_(PRICE * gap)
        else:
            self.value += STEP_SIZE * gap
            thresholds *= (CORRECTION * gap).exp().to(thresholds.dtype)
        return expected

    def measured(self, cost: float) -> None:
        """Set the offset from the relative FLOPs that an evaluation measured."""
        self.offset.copy_(cost - self.mean)


def sampled_budget(budgets: Sequence[float], seed: int, step: int) -> int:
    """Draw the index of the budget that an optimiser step trains: equal in all processes and after a resume.

    Args:
        budgets: relative FLOPs; probabilities are proportional to ``budget ** -HARDER_MORE_OFTEN``.
        seed: the training's seed.
        step: number of optimiser steps before this one.
    """
    if len(budgets) < 2:
        return 0
    weights = np.asarray(budgets) ** -HARDER_MORE_OFTEN
    return int(np.random.default_rng((seed, step)).choice(len(budgets), p=weights / weights.sum()))
