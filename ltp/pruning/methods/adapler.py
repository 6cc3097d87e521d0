"""AdapLeR: predictors of each token's contribution, which gradients teach (Modarressi et al., arXiv 2203.08991).

Before each layer a small network on the hidden states gives every token its share of the answer. A token leaves whose
share is below a part of an even one; these parts are learned thresholds. The shares are taught by the dense parent: by
gradient times input, for the true label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import Method, setting
from ltp.pruning.methods.absolute_threshold import threshold_survivors
from ltp.pruning.networks import float32_outputs, new_scorer, scorer_flops

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: What the soft rule takes from the logarithm of the gate at the threshold, times the slope.
KNEE = 0.1
#: Smallest threshold of the soft rule, as published.
LOWEST = 1e-2


@dataclass
class AdapLeR(Method):
    """Drops the tokens whose predicted share of the answer is small, before the layer's attention."""

    initial_share: float = setting(
        0.25,
        "threshold of every layer before learning, in even shares",
        is_valid=lambda value: 0 <= value <= 1,
        range="in [0, 1]",
        published="0.25",
        short="threshold",
        initial=True,
        set_by_budget=True,
    )
    saliency_weight: float = setting(
        0.005,
        "weight of the divergence of the shares from the saliency",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        published="0.005",
        place="saliency",
        learned=True,
    )
    length_weight: float = setting(
        5e-4,
        "weight of the sum of all layers' lengths",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        published="0.0005",
        place="weight",
        short="weight",
        learned=True,
        set_by_budget=True,
    )
    removal_slope: float = setting(
        10.0,
        "slope of the soft removal below the threshold",
        is_valid=lambda value: 0 < value < float("inf"),
        range="above 0",
        published="10, ten times that in each further epoch",
        learned=True,
    )
    lr_predictor: float | None = setting(
        5e-4,
        "peak learning rate of predictors and thresholds",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        key="",
        learned=True,
        stage="soft",
    )

    name: ClassVar[str] = "adapler"
    learns: ClassVar[bool] = True
    decides_before: ClassVar[bool] = True
    masking: ClassVar[str] = "survival"
    label: ClassVar[str] = "AdapLeR"
    description: ClassVar[str] = (
        "Before each layer a small network predicts how much each token contributes to the answer, and "
        "drops those that contribute little (AdapLeR, [arXiv 2203.08991](https://arxiv.org/abs/2203.08991))."
    )
    demo: ClassVar[Mapping[str, Any]] = {"lr_predictor": 5e-3}
    style: ClassVar[tuple[str, str, str]] = ("#AA4499", "*", "-.")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden"})

    @property
    def needs_saliency(self) -> bool:
        return self.saliency_weight > 0

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        predictors = [new_scorer(shape.hidden_size) for _ in range(shape.num_layers)]
        thresholds = torch.full((shape.num_layers,), self.initial_share)
        return {"thresholds": thresholds, "predictors": torch.nn.ModuleList(predictors)}

    def scores(self, tokens: Tokens, weights: Any) -> Tensor:
        """Predict the contribution of each token, (B, N) float32: 1 for an even share of the tokens alive.

        The class token always stays and has no share; its score is 0.
        """
        predictor, candidates = weights.predictors[tokens.layer - 1], tokens.candidates
        logits = float32_outputs(predictor, tokens.hidden).squeeze(-1)
        shares = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min).softmax(dim=1)
        return shares * candidates * candidates.sum(dim=1, keepdim=True)

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return threshold_survivors(self.scores(tokens, weights), weights.thresholds[tokens.layer - 1], tokens.alive)

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        candidates = tokens.candidates
        present = tokens.presence * candidates
        scores, count = self.scores(tokens, weights), present.sum(dim=1, keepdim=True).clamp(min=1e-6)
        # an even share is one of the tokens that are still present: under a hard mask this changes nothing
        scores = scores / ((scores * present).sum(dim=1, keepdim=True) / count).clamp(min=1e-12)
        threshold, drop = weights.thresholds[tokens.layer - 1].clamp(min=LOWEST), KNEE / self.removal_slope
        below = self.removal_slope * (scores / threshold - 1) - drop
        above = drop * (scores - count) / (count - threshold).clamp(min=1e-6)  # from -drop at the threshold to 0
        gate = torch.where(scores < threshold, below, above).clamp(max=0).exp()
        return torch.where(candidates, gate, torch.ones_like(gate)) * tokens.alive

    def guidance(self, scores: Tensor, saliency: Tensor, weights: Any) -> Tensor | float:
        """Return the divergence KL(saliency ‖ shares), times L for the first layer and 1 for the last one.

        A mean over the inputs; one whose saliency is 0 adds nothing.
        """
        target = saliency[:, 1:]
        count = (scores[0, :, 1:] >= 0).sum(dim=1, keepdim=True)
        target = target / target.sum(dim=1, keepdim=True).clamp(min=1e-30)
        shares = scores[:, :, 1:] / count.clamp(min=1)
        divergence = target * (target.clamp(min=1e-12).log() - shares.clamp(min=1e-12).log())  # (L, B, N-1)
        layers = torch.arange(len(scores), 0, -1, device=scores.device)
        return self.saliency_weight * (divergence.sum(dim=2).mean(dim=1) * layers).sum()

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.length_weight * soft.expected_lengths[:, 1:].sum(dim=1).mean()

    def own_flops(self, shape: EncoderShape) -> float:
        return scorer_flops(shape.hidden_size)

    @property
    def learning_rate(self) -> float | None:
        return self.lr_predictor

    @classmethod
    def has_thresholds(cls) -> bool:
        return True

    def largest_score(self, shape: EncoderShape) -> float:
        return float(shape.max_positions)  # all of the answer from one token

    @classmethod
    def initial_thresholds(cls, settings: Mapping[str, Any], num_layers: int) -> list[float]:
        share = settings.get("initial_share")
        return [float(share)] * num_layers if isinstance(share, int | float) else []
