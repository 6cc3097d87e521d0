"""ToP: hard-concrete gates on ranks and layers (Li et al., arXiv 2306.14393).

The publication also distils the ranking of the teacher's last layer: ``distill=ranking``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import setting
from ltp.pruning.ranking import keep_counts, keep_highest, ranks, running_min
from ltp.pruning.scored import ScoredMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: Number of bins of ranks in a layer.
BINS = 20
#: The hard-concrete distribution (Louizos et al., arXiv 1712.01312): temperature and stretched interval.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
#: Initial logits: every gate is 1.
INITIAL_LOGIT = 2.5
#: Layers keep at most ``1 − MARGIN · l / L`` of the tokens, so that a power of every rate falls.
MARGIN = 1e-3


def hard_concrete(logits: Tensor, noise: bool) -> Tensor:
    """Return gates in [0, 1] of the shape of ``logits``: drawn, or without noise their typical value."""
    if noise:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = (uniform.log() - (1 - uniform).log() + logits) / TEMPERATURE
    return (logits.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


@dataclass
class ToP(ScoredMethod):
    """Keeps the highest-ranked tokens of each input; which ranks each layer keeps is learned by gates."""

    sparsity_weight: float = setting(
        0.5,
        "weight of the mean share of tokens kept",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        place="weight",
        short="weight",
        learned=True,
        set_by_budget=True,
    )
    gate_noise: bool = setting(True, "draw the gates in training, as published", learned=True)
    lr_gates: float | None = setting(
        2e-2,
        "peak learning rate of the gates",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        key="",
        learned=True,
        stage="soft",
    )
    keep_power: float = setting(
        1.0,
        "power of the shares that were learned",
        is_valid=lambda value: 0 <= value <= 1e6,
        range="in [0, 1e6]",
        set_by_budget=True,
    )

    name: ClassVar[str] = "top"
    learns: ClassVar[bool] = True
    masking: ClassVar[str] = "survival"
    cost_depends_on_weights: ClassVar[bool] = False
    label: ClassVar[str] = "ToP"
    description: ClassVar[str] = (
        "Each layer keeps the tokens that rank highest by the attention they receive; which ranks, was "
        "learned by gates (ToP, [arXiv 2306.14393](https://arxiv.org/abs/2306.14393))."
    )
    demo: ClassVar[Mapping[str, Any]] = {"lr_gates": 1e-1}
    style: ClassVar[tuple[str, str, str]] = ("#117733", "h", "--")

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        bins = torch.full((shape.num_layers, BINS), INITIAL_LOGIT)
        return {"rank_logits": bins, "layer_logits": torch.full((shape.num_layers,), INITIAL_LOGIT)}

    def _gates(self, weights: Any, noise: bool) -> Tensor:
        """Return the gate of each bin of ranks in each layer, (L, BINS): 1 where the layer's own gate is closed."""
        prunes = hard_concrete(weights.layer_logits.float(), noise)[:, None]
        return 1 - prunes * (1 - hard_concrete(weights.rank_logits.float(), noise))

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        shares = self._gates(weights, noise=False).mean(dim=1)
        layers = torch.arange(1, len(shares) + 1, device=shares.device)
        shares = running_min(shares.minimum(1 - MARGIN * layers / len(shares))) ** self.keep_power
        return keep_highest(
            self.importance(tokens), keep_counts(shares[tokens.layer - 1], tokens.lengths), tokens.alive
        )

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        gates = self._gates(weights, noise=self.gate_noise and tokens.training)[tokens.layer - 1]
        rank = ranks(self.importance(tokens).detach(), tokens.alive)
        gate = gates[(rank * BINS // tokens.lengths[:, None]).clamp(max=BINS - 1)]
        return torch.where(rank == 0, torch.ones_like(gate), gate) * tokens.alive

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.sparsity_weight * soft.kept_share

    @property
    def learning_rate(self) -> float | None:
        return self.lr_gates

    def at_strength(self, strength: float) -> dict[str, Any]:
        return {"keep_power": min(self.keep_power * strength, 1e6)}
