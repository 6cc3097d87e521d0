"""LTMP's gate: thresholds learned through the hard mask itself (Bonnaerens and Dambre, arXiv 2305.17328, pruning only).

The rule is that of learned thresholds. In training the mask is hard: dropped tokens get no attention, and gradients
pass as if it were a sigmoid (straight-through). The penalty pulls the cost to a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import setting
from ltp.pruning.methods.absolute_threshold import threshold_gate, threshold_survivors
from ltp.pruning.scored import ScoredMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens


@dataclass
class LTMP(ScoredMethod):
    """Drops the tokens whose importance is below a learned threshold; trains the mask that it will execute."""

    kept_share: float = setting(
        0.5,
        "share of the tokens, averaged over the layers, that the penalty pulls to",
        is_valid=lambda value: 0 < value <= 1,
        range="above 0 and at most 1",
        place="kept",
        short="kept",
        set_by_budget=True,
    )
    penalty_weight: float = setting(
        10.0,
        "weight of the squared distance from kept_share",
        is_valid=lambda value: value >= 0,
        range="0 or more",
        published="10",
        learned=True,
        set_by_budget=True,
    )
    gate_temperature: float = setting(
        1e-3,
        "temperature of the sigmoid that gradients pass through, in units of importance",
        is_valid=lambda value: 0 < value <= 1,
        range="in (0, 1]",
        published="0.1, of scores 128 times as large",
        learned=True,
    )
    lr_gate: float | None = setting(
        1e-4,
        "peak learning rate of the thresholds",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        key="",
        learned=True,
        stage="soft",
    )

    name: ClassVar[str] = "ltmp"
    learns: ClassVar[bool] = True
    masking: ClassVar[str] = "survival"
    label: ClassVar[str] = "LTMP gate"
    description: ClassVar[str] = (
        "Each layer drops the tokens whose importance is below its threshold; the thresholds were "
        "learned through the hard mask (LTMP, [arXiv 2305.17328](https://arxiv.org/abs/2305.17328))."
    )
    style: ClassVar[tuple[str, str, str]] = ("#CC79A7", "D", ":")

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        return {"thresholds": torch.zeros(shape.num_layers)}

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return threshold_survivors(self.importance(tokens), weights.thresholds[tokens.layer - 1], tokens.alive)

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        scores, threshold = self.importance(tokens), weights.thresholds[tokens.layer - 1]
        soft = threshold_gate(scores, threshold, tokens.alive, self.gate_temperature)
        hard = threshold_survivors(scores, threshold, tokens.alive).float()
        return hard + soft - soft.detach()

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.penalty_weight * (soft.kept_share - self.kept_share).square()

    @property
    def learning_rate(self) -> float | None:
        return self.lr_gate

    @classmethod
    def has_thresholds(cls) -> bool:
        return True

    def largest_score(self, shape: EncoderShape) -> float:
        return max(1.0, shape.max_positions / self.score_length)
