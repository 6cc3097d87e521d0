"""Pruning with one threshold per layer, given or learned (LTP §3.2-3.3)."""

from typing import Any

import torch
from torch import Tensor, nn

from ltp.pruning.base import Pruner


def threshold_schedule(final_token_threshold: float, num_layers: int) -> Tensor:
    """Compute the initial thresholds ``theta_l = final_token_threshold · l / L`` of layers l = 1..L.

    Returns:
        Thresholds on importance, (L,) float32. With 0.01 and 12 layers the 3rd, 6th, 9th and 12th are 0.0025,
        0.005, 0.0075 and 0.01.
    """
    layers = torch.arange(1, num_layers + 1, dtype=torch.float64)
    return (final_token_threshold * layers / num_layers).to(torch.float32)


def threshold_survivors(scores: Tensor, threshold: Tensor, alive: Tensor) -> Tensor:
    """Apply the hard rule: keep token j if ``s(j) >= theta``, and always keep the classification token.

    Args:
        scores: importance, (B, N) float32.
        threshold: theta of the layer, scalar float32.
        alive: tokens alive when the layer starts, (B, N) bool.

    Returns:
        Tokens kept, (B, N) bool.
    """
    survivors = alive & (scores >= threshold)
    survivors[:, 0] = alive[:, 0]
    return survivors


def threshold_gate(scores: Tensor, threshold: Tensor, alive: Tensor, temperature: float) -> Tensor:
    """Apply the soft rule: ``m(j) = sigmoid((s(j) − theta) / temperature)``, 1 for the classification token.

    Differentiable in the scores and the threshold. It converges to the hard rule as the temperature goes to 0.

    Args:
        scores: importance, (B, N) float32.
        threshold: theta of the layer, scalar float32.
        alive: real tokens, (B, N) bool.
        temperature: T > 0, in units of importance.

    Returns:
        Gate m, (B, N) float32, 0 for padding.
    """
    gate = torch.sigmoid((scores - threshold) / temperature)
    class_token = torch.zeros_like(alive)
    class_token[:, 0] = True
    return torch.where(class_token, 1.0, gate) * alive


def sparsity_penalty(gate_sums: Tensor, score_length: int) -> Tensor:
    """Compute the regulariser ``Σ_l 1/B Σ_b 1/Z Σ_j m_l(b, j)`` (LTP §3.3), without the factor lambda.

    Z is constant, so a token is penalised equally in short and long sentences, in line with its cost in FLOPs.

    Args:
        gate_sums: sums Σ_j m_l(b, j) over the real tokens, (B, L) float32.
        score_length: the constant Z, in tokens.

    Returns:
        Scalar float32, between 0 and L·N/Z.
    """
    return gate_sums.sum(dim=1).mean() / score_length


class ThresholdPruner(Pruner):
    """One threshold on importance per layer: ``prune_mode: absolute_threshold``.

    Args:
        num_layers: L.
        final_token_threshold: last value of the initial schedule, see :func:`threshold_schedule`.
        temperature: T of the soft rule.
        num_budgets: K, the number of FLOPs budgets with thresholds of their own.

    Attributes:
        thresholds: the effective thresholds, (L,) float32, saved with the weights. Keep them float32.
        budget_thresholds: thresholds of each budget, (K, L) float32; absent without budgets. The row of the budget
            in use is updated only when :meth:`use_budget` selects another one.
        budget_in_use: row of the budget in use, scalar int64; absent without budgets.
    """

    budget_thresholds: Tensor
    budget_in_use: Tensor

    prune_mode = "absolute_threshold"
    learnable = True

    def __init__(
        self, num_layers: int, final_token_threshold: float, temperature: float = 1e-3, num_budgets: int = 0
    ) -> None:
        super().__init__()
        self.final_token_threshold = final_token_threshold
        self.temperature = temperature
        self.num_budgets = num_budgets
        self.thresholds = nn.Parameter(threshold_schedule(final_token_threshold, num_layers))
        if num_budgets:
            self.register_buffer("budget_thresholds", self.thresholds.detach().repeat(num_budgets, 1))
            self.register_buffer("budget_in_use", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, config: Any) -> "ThresholdPruner":
        return cls(
            config.num_hidden_layers,
            config.final_token_threshold,
            config.threshold_temperature,
            num_budgets=len(config.budgets),
        )

    @torch.no_grad()
    def reset(self) -> None:
        self.thresholds.copy_(threshold_schedule(self.final_token_threshold, self.thresholds.numel()))
        if self.num_budgets:
            self.share_thresholds()
            self.budget_in_use.zero_()

    @torch.no_grad()
    def share_thresholds(self) -> None:
        """Copy the effective thresholds to every budget."""
        self.budget_thresholds.copy_(self.thresholds.expand_as(self.budget_thresholds))

    @torch.no_grad()
    def use_budget(self, number: int) -> None:
        """Make the thresholds of a budget the effective ones, in place, after saving the current ones in their row.

        Args:
            number: row of the budget.
        """
        self.budget_thresholds[self.budget_in_use] = self.thresholds
        self.thresholds.copy_(self.budget_thresholds[number])
        self.budget_in_use.fill_(number)

    def survivors(self, layer: int, scores: Tensor, alive: Tensor, lengths: Tensor) -> Tensor:
        return threshold_survivors(scores, self.thresholds[layer - 1], alive)

    def gate(self, layer: int, scores: Tensor, alive: Tensor) -> Tensor:
        return threshold_gate(scores, self.thresholds[layer - 1], alive, self.temperature)
