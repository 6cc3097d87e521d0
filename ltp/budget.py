"""A budget while training: what holds a soft training at it, and which of several a step trains."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ltp.flops import flops_and_dense

# Chosen by a few runs on the demo (0.3) and on SST-2 (0.3, 0.378 and 0.5). Tried instead of the correction: only a
# price of lambda + 5 to 10 times the gap, which swings, or follows too slowly where gates are sharp and their gradients
# vanish. There is no warm-up: a goal that fell to the budget over 60 % of the steps left the weights too few there.
STEP_SIZE = 0.3  # of the dual ascent: lambda moves by this times the gap
CORRECTION = 0.3  # thresholds are multiplied by exp(this times the gap); their logarithm's slope is about −0.3
MEAN_SHARE = 0.3  # of a step in the running mean of its cost: batches hold inputs of one length, and so vary

# Of several budgets the harder ones need more steps, and what they learn serves the others. 0.3, 0.5 and 0.7 of SST-2
# (one seed, accuracy in % after hard) drawn alike came to 53.2, 84.2 and 86.1; drawn so, to 69.6, 83.7 and 85.9 (both
# with a warm-up; without, 65.0, 84.1 and 85.2).
HARDER_MORE_OFTEN = 2.0


class BudgetMultipliers(nn.Module):
    """One Lagrange multiplier a budget, on the expected FLOPs of a soft training.

    The training minimises ``task loss + lambda · E``, where E is the expected relative FLOPs. After every step
    ``gap = mean E + offset − budget`` and ``lambda += STEP_SIZE · gap`` (dual ascent). So lambda becomes the price at
    which no layer's threshold gains by a change: it decides *where* tokens leave. *How many* leave would follow too
    late and swing, as lambda integrates the gap and thresholds, moved by at most their learning rate a step,
    integrate lambda; therefore all thresholds are also multiplied by one factor, towards the budget.

    What training batches are expected to cost is not what an evaluation counts: gates are soft, dropout is on, and
    the texts may be shorter (on SST-2 by far). The offset is that difference, measured from time to time.

    All state is in buffers, so that a checkpoint holds it.

    Args:
        budgets: relative FLOPs.
        dense_flops: mean dense FLOPs of a training example. E of a batch is a mean over its examples of their FLOPs
            divided by this constant, so that it adds up over micro-batches and processes.
        hidden_size, intermediate_size: D and I.
    """

    lambdas: Tensor
    means: Tensor
    offsets: Tensor

    def __init__(
        self,
        budgets: Sequence[float],
        *,
        dense_flops: float,
        hidden_size: int,
        intermediate_size: int,
    ) -> None:
        super().__init__()
        self.budgets = tuple(budgets)
        self.dense_flops = dense_flops
        self.sizes = (hidden_size, intermediate_size)
        for name in ("lambdas", "means", "offsets"):  # a mean of 0: not trained yet
            self.register_buffer(name, torch.zeros(len(budgets), dtype=torch.float64))
        self._seen = torch.zeros(2, dtype=torch.float64)  # FLOPs and dense FLOPs since the last step

    def penalty(self, number: int, expected_lengths: Tensor) -> Tensor:
        """``lambda · E`` of a micro-batch, a mean over its examples.

        Args:
            number: which budget.
            expected_lengths: (B, L+1) float32, with gradients.

        Returns:
            Scalar float32.
        """
        cost, dense = flops_and_dense(expected_lengths, *self.sizes)
        self._seen += torch.stack([cost.detach().sum(), dense.detach().sum()]).cpu()
        return (self.lambdas[number] * cost.mean() / self.dense_flops).float()

    @torch.no_grad()
    def update(self, number: int, thresholds: Tensor, total: Callable[[Tensor], Tensor]) -> float:
        """Adapt a budget's multiplier, and the thresholds' level, to what a step has cost.

        Args:
            number: which budget.
            thresholds: (L,), changed in place.
            total: sums a tensor over all processes.

        Returns:
            The step's expected relative FLOPs.
        """
        cost, dense = total(self._seen).tolist()
        self._seen.zero_()
        expected = cost / dense
        if self.means[number] == 0:  # the thresholds were calibrated before the first step: an evaluation counts this
            self.means[number] = expected
            self.measured(number, self.budgets[number])
        self.means[number] += MEAN_SHARE * (expected - self.means[number])
        gap = self.means[number] + self.offsets[number] - self.budgets[number]
        self.lambdas[number] += STEP_SIZE * gap
        thresholds *= (CORRECTION * gap).exp().to(thresholds.dtype)
        return expected

    def measured(self, number: int, cost: float) -> None:
        """Learn what an evaluation counts now, in relative FLOPs."""
        self.offsets[number] = cost - self.means[number]


def sampled_budget(budgets: Sequence[float], seed: int, step: int) -> int:
    """Which of several budgets an optimiser step trains: the same in every process, and after a resume.

    Args:
        budgets: relative FLOPs; each is drawn in proportion to ``budget ** -HARDER_MORE_OFTEN``.
        seed: of the training.
        step: optimiser steps done before this one.
    """
    if len(budgets) < 2:
        return 0
    shares = np.asarray(budgets) ** -HARDER_MORE_OFTEN
    return int(np.random.default_rng((seed, step)).choice(len(budgets), p=shares / shares.sum()))
