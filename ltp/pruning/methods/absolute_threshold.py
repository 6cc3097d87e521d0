"""Learned Token Pruning: one threshold on importance per layer, given or learned (arXiv 2107.00910, §3.2-3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import Variant, setting
from ltp.pruning.scored import ScoredMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: Shapes of the initial thresholds over the layers.
SHAPES = ("rising", "flat")


def threshold_schedule(final_token_threshold: float, num_layers: int, shape: str = "rising") -> list[float]:
    """Compute the initial thresholds of layers l = 1..L.

    Args:
        final_token_threshold: the threshold of layer L.
        num_layers: L.
        shape: ``rising``: ``theta_l = final_token_threshold · l / L``; ``flat``: the same in every layer.

    Returns:
        L thresholds on importance. With 0.01 and 12 layers the 3rd, 6th, 9th and 12th are 0.0025, 0.005, 0.0075 and
        0.01.
    """
    if shape == "flat":
        return [final_token_threshold] * num_layers
    return [final_token_threshold * layer / num_layers for layer in range(1, num_layers + 1)]


def threshold_survivors(scores: Tensor, threshold: Tensor, alive: Tensor) -> Tensor:
    """Apply the hard rule: keep token j if ``s(j) >= theta``, and always keep the classification token.

    Args:
        scores: importance, (B, N) float32.
        threshold: theta of the layer, scalar float32.
        alive: tokens alive when the layer starts, (B, N) bool.

    Returns:
        Tokens kept, (B, N) bool.
    """
    is_class_token = torch.arange(alive.shape[1], device=alive.device) == 0
    return alive & ((scores >= threshold) | is_class_token)


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


@dataclass
class AbsoluteThreshold(ScoredMethod):
    """Drops the tokens whose importance is below the layer's threshold."""

    final_token_threshold: float = setting(
        0.01,
        "threshold of the last layer, in units of importance; the others scale linearly",
        is_valid=lambda value: 0 <= value < 1,
        range="in [0, 1)",
        published="0.004–0.016",
        place="rate",
        short="threshold",
        initial=True,
        set_by_budget=True,
    )
    threshold_shape: str = setting(
        "rising",
        "initial thresholds over the layers: rising (linearly) or flat",
        is_valid=lambda value: value in SHAPES,
        range=" or ".join(SHAPES),
        initial=True,
    )
    temperature: float = setting(
        1e-3,
        "temperature of the soft rule, in units of importance",
        is_valid=lambda value: 0 < value <= 1,
        range="in (0, 1]",
        published="1e-5 to 2e-3",
        key="threshold_temperature",  # transformers reserves the other name for generation
        place="temperature",
        learned=True,
        with_budget=3e-4,  # sharp gates make the expected cost close to the counted cost
    )
    lambda_threshold: float = setting(
        0.15,
        "weight of the regulariser",
        is_valid=lambda value: 0 <= value < math.inf,
        range="0 or more",
        published="0.01–0.2",
        model_default=0.0,
        place="lambda",
        short="lambda",
        learned=True,
        set_by_budget=True,
    )
    lr_threshold: float | None = setting(
        None,
        "peak learning rate of the thresholds; null: lr",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        key="",
        learned=True,
        stage="soft",
        follows="lr",
        with_budget=3e-5,
    )

    name: ClassVar[str] = "absolute_threshold"
    aliases: ClassVar[Mapping[str, str]] = {"threshold": "", "manual": "manual"}
    learns: ClassVar[bool] = True
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant(
            "learned",
            "learned threshold",
            adjective="learned-threshold",
            description="Each layer drops the tokens whose importance (the attention they receive) is below its "
            "threshold; the thresholds were learned (Learned Token Pruning, "
            "[arXiv 2107.00910](https://arxiv.org/abs/2107.00910)).",
            learned=True,
            demo={"final_token_threshold": 0.005, "lambda_threshold": 0.05},
            color="#0072B2",
            marker="o",
            line="-",
            # the paper's grid; lr first, so that parallel jobs train different parents rather than wait for one
            grid={
                "lr": "5e-6,1e-5,2e-5",
                "prune.temperature": "1e-4,2e-4,5e-4,1e-3,2e-3",
                "prune.lambda_threshold": "0.01,0.05,0.1,0.15,0.2",
            },
            sweep="ltp",
        ),
        Variant(
            "manual",
            "manual threshold",
            adjective="manual-threshold",
            description="Each layer drops the tokens whose importance (the attention they receive) is below its "
            "threshold; the thresholds rise linearly to a chosen last one.",
            defaults={"final_token_threshold": 0.004},
            demo={"final_token_threshold": 0.01},
            color="#D55E00",
            marker="s",
            line="--",
            shown=("final_token_threshold",),
            grid={
                "prune.final_token_threshold": "0.004,0.006,0.008,0.01,0.012,0.014,0.016",
                "lr": "5e-6,1e-5,2e-5",
            },
        ),
    )
    is_default: ClassVar[bool] = True
    # without training, ``mean_norm`` loses less than ``mean``
    untrained: ClassVar[Mapping[str, Any]] = {
        "scoring_mode": "mean_norm",
        "final_token_threshold": 0.01,
    }

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        schedule = threshold_schedule(self.final_token_threshold, shape.num_layers, self.threshold_shape)
        return {"thresholds": torch.tensor(schedule, dtype=torch.float64).float()}

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return threshold_survivors(self.importance(tokens), weights.thresholds[tokens.layer - 1], tokens.alive)

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        threshold = weights.thresholds[tokens.layer - 1]
        return threshold_gate(self.importance(tokens), threshold, tokens.alive, self.temperature)

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.lambda_threshold * sparsity_penalty(soft.gate_sums, self.score_length)

    @property
    def learning_rate(self) -> float | None:
        return self.lr_threshold

    @classmethod
    def has_thresholds(cls) -> bool:
        return True

    def largest_score(self, shape: EncoderShape) -> float:
        return max(1.0, shape.max_positions / self.score_length)

    @classmethod
    def initial_thresholds(cls, settings: Mapping[str, Any], num_layers: int) -> list[float]:
        final, shape = settings.get("final_token_threshold"), settings.get("threshold_shape", "rising")
        return threshold_schedule(final, num_layers, shape) if isinstance(final, int | float) else []

    def settings_of(self, weights: Any) -> dict[str, Any]:
        last = float(weights.thresholds[-1].detach())
        return {"final_token_threshold": last} if 0 <= last < 1 else {}  # the valid range
