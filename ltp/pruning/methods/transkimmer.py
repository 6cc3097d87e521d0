"""Transkimmer: a small predictor before each layer decides which tokens skip the rest (arXiv 2205.07324)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import Method, setting
from ltp.pruning.networks import at_odds, float32_outputs, initialised

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: Bias of the last layer of a predictor: it keeps every token at first, with odds of exp(5).
INITIAL_BIAS = 5.0


def new_predictor(hidden_size: int) -> Any:
    """Create the predictor of a layer: (…, D) to the logits of skipping and of keeping, (…, 2)."""
    nn = torch.nn
    predictor: Any = initialised(
        nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, 2),
        )
    )
    with torch.no_grad():
        predictor[4].bias.copy_(torch.tensor([-INITIAL_BIAS / 2, INITIAL_BIAS / 2]))
    return predictor


@dataclass
class Transkimmer(Method):
    """Drops the tokens that a predictor on the hidden states rejects, before the layer's attention."""

    skim_weight: float = setting(
        0.5,
        "weight of the mean share of tokens kept",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        published="0.5",
        place="weight",
        short="weight",
        learned=True,
        set_by_budget=True,
    )
    skim_noise: bool = setting(
        True, "Gumbel noise on the predictors in training, as published", learned=True, key="skim_noise"
    )
    skim_threshold: float = setting(
        0.5,
        "probability of keeping from which on a token is kept",
        is_valid=lambda value: 0 <= value <= 1,
        range="in [0, 1]",
        short="threshold",
        set_by_budget=True,
    )
    lr_predictor: float | None = setting(
        2e-4,
        "peak learning rate of the predictors",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        key="",
        learned=True,
        stage="soft",
    )

    name: ClassVar[str] = "transkimmer"
    learns: ClassVar[bool] = True
    decides_before: ClassVar[bool] = True
    masking: ClassVar[str] = "survival"
    label: ClassVar[str] = "Transkimmer"
    description: ClassVar[str] = (
        "Before each layer a small network decides which tokens skip the rest of the encoder "
        "(Transkimmer, [arXiv 2205.07324](https://arxiv.org/abs/2205.07324))."
    )
    demo: ClassVar[Mapping[str, Any]] = {"lr_predictor": 2e-3}
    style: ClassVar[tuple[str, str, str]] = ("#56B4E9", "P", "--")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden"})

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        predictors = [new_predictor(shape.hidden_size) for _ in range(shape.num_layers)]
        return {"predictors": torch.nn.ModuleList(predictors)}

    def _keep_logit(self, tokens: Tokens, weights: Any) -> Tensor:
        """Return the log-odds of keeping each token, (B, N) float32."""
        logits = float32_outputs(weights.predictors[tokens.layer - 1], tokens.hidden)
        return logits[..., 1] - logits[..., 0]

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        # in odds, so that both ends of the threshold's range are exact
        kept = self._keep_logit(tokens, weights).sigmoid() >= self.skim_threshold
        survivors = tokens.alive & kept
        survivors[:, 0] = tokens.alive[:, 0]
        return survivors

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        logit = self._keep_logit(tokens, weights)
        if self.skim_noise and tokens.training:  # the difference of two Gumbel variables is logistic
            uniform = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            logit = logit + uniform.log() - (1 - uniform).log()
        soft = logit.sigmoid()
        hard = (soft >= 0.5).float()
        gate = hard + soft - soft.detach()
        return torch.where(tokens.candidates, gate, torch.ones_like(gate)) * tokens.alive

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.skim_weight * soft.kept_share  # of real tokens: padding does not count

    def own_flops(self, shape: EncoderShape) -> float:
        return 2.0 * (shape.hidden_size**2 + 2 * shape.hidden_size)

    @property
    def learning_rate(self) -> float | None:
        return self.lr_predictor

    def at_strength(self, strength: float) -> dict[str, Any]:
        return {"skim_threshold": at_odds(self.skim_threshold, strength)}
