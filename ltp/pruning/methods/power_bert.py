"""PoWER-BERT: how many tokens each layer keeps is learned, by rank (Goyal et al., arXiv 2001.08950)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import setting
from ltp.pruning.ranking import keep_highest, ranks, running_min
from ltp.pruning.scored import ScoredMethod, scoring_mode_setting

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens


def retained_counts(retention: Tensor, scale: float = 1.0) -> Tensor:
    """Return the number of tokens that each layer keeps: ``⌈scale · Σ_k r_l[k]⌉``, which does not rise, at least 1.

    With a scale the layers are rounded in turn, the last ones down first: a small change of the scale then changes few
    layers, so that costs lie close together.

    Args:
        retention: r, the share of each rank that a layer retains, (L, N) float32, in [0, 1].
        scale: factor on the sums.

    Returns:
        (L,) int64.
    """
    mass = retention.clamp(0, 1).double().sum(dim=1) * scale
    if scale != 1:
        mass = mass - torch.arange(len(mass), device=mass.device) / len(mass)
    return running_min((mass - 1e-6).ceil().long().clamp(min=1))  # 1e-6: a sum of float32 that is whole


@dataclass
class PowerBert(ScoredMethod):
    """Keeps the highest-ranked tokens of each input; their number in each layer is learned."""

    scoring_mode: str = scoring_mode_setting("off_diagonal")
    lambda_retention: float = setting(
        3e-3,
        "weight of the retained mass, which counts a layer l times",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        published="1e-4 to 7e-3",
        place="lambda",
        short="lambda",
        learned=True,
        set_by_budget=True,
    )
    lr_retention: float | None = setting(
        3e-3,
        "peak learning rate of the retention",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        published="1e-4 to 3e-3",
        key="",
        learned=True,
        stage="soft",
    )
    retention_scale: float = setting(
        1.0,
        "factor on the numbers of tokens that were learned",
        is_valid=lambda value: 0 <= value <= 1e6,
        range="in [0, 1e6]",
        set_by_budget=True,
    )

    name: ClassVar[str] = "power_bert"
    learns: ClassVar[bool] = True
    cost_depends_on_weights: ClassVar[bool] = False
    label: ClassVar[str] = "PoWER-BERT"
    description: ClassVar[str] = (
        "Each layer keeps the tokens that rank highest by the attention they receive from others; how "
        "many, was learned (PoWER-BERT, [arXiv 2001.08950](https://arxiv.org/abs/2001.08950))."
    )
    demo: ClassVar[Mapping[str, Any]] = {"lr_retention": 2e-2}
    style: ClassVar[tuple[str, str, str]] = ("#E69F00", "v", "-")

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        return {"retention": torch.ones(shape.num_layers, min(self.score_length, shape.max_positions))}

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        counts = retained_counts(weights.retention, self.retention_scale)[tokens.layer - 1]
        return keep_highest(self.importance(tokens), counts.expand_as(tokens.lengths), tokens.alive)

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        retention = weights.retention[tokens.layer - 1].clamp(0, 1)
        rank = ranks(self.importance(tokens).detach(), tokens.alive).clamp(max=len(retention) - 1)
        gate = retention[rank]
        return torch.where(rank == 0, torch.ones_like(gate), gate) * tokens.alive

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        layers = torch.arange(1, len(weights.retention) + 1, device=weights.retention.device)
        return self.lambda_retention * (layers * weights.retention.clamp(0, 1).sum(dim=1)).sum()

    @property
    def learning_rate(self) -> float | None:
        return self.lr_retention

    def at_strength(self, strength: float) -> dict[str, Any]:
        return {"retention_scale": min(self.retention_scale / max(strength, 1e-6), 1e6)}
