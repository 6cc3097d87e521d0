"""TR-BERT: before two layers a policy samples the tokens that stay, and learns by reinforcement (arXiv 2105.11618)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import Method, setting
from ltp.pruning.networks import at_odds, float32_outputs, new_scorer, scorer_flops
from ltp.pruning.ranking import keep_highest

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import EncoderShape, SoftPass, Tokens

#: Log-odds with which a policy keeps a token at first.
INITIAL_ODDS = 2.0


def _are_layers(value: Any) -> bool:
    return bool(value) and all(type(layer) is int and layer >= 1 for layer in value) and value == sorted(set(value))


@dataclass
class TRBERT(Method):
    """Drops the tokens that a policy on the hidden states rejects, before the attention of few layers."""

    select_layers: list[int] | None = setting(  # noqa: RUF009 (a field, as the others)
        None,
        "layers before which tokens leave; null: 2 and the one after the middle",
        is_valid=_are_layers,
        range="layers from 1 on, ascending",
        published="null",
        initial=True,
    )
    select_threshold: float = setting(
        0.5,
        "probability of keeping from which on a token is kept",
        is_valid=lambda value: 0 <= value <= 1,
        range="in [0, 1]",
        published="0.5",
        short="threshold",
        set_by_budget=True,
    )
    select_weight: float = setting(
        1.0,
        "weight of the mean share of tokens kept",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        published="0.01 to 5",
        place="weight",
        short="weight",
        learned=True,
        set_by_budget=True,
    )
    policy_samples: int = setting(
        8,
        "how often a training step of the soft stage runs each example",
        is_valid=lambda value: value >= 2,
        range="2 or more",
        published="8",
        learned=True,
    )
    imitation_weight: float = setting(
        0.1,
        "weight of keeping the most salient tokens, as many as the policy keeps",
        is_valid=lambda value: 0 <= value < float("inf"),
        range="0 or more",
        learned=True,
    )
    lr_policy: float | None = setting(
        5e-4,
        "peak learning rate of the policies",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        published="3e-5",
        key="",
        learned=True,
        stage="soft",
    )

    name: ClassVar[str] = "tr_bert"
    learns: ClassVar[bool] = True
    decides_before: ClassVar[bool] = True
    masking: ClassVar[str] = "survival"
    label: ClassVar[str] = "TR-BERT"
    description: ClassVar[str] = (
        "Before two layers a small network, trained by reinforcement, selects the tokens that stay "
        "(TR-BERT, [arXiv 2105.11618](https://arxiv.org/abs/2105.11618))."
    )
    demo: ClassVar[Mapping[str, Any]] = {"lr_policy": 5e-3, "policy_samples": 4}
    style: ClassVar[tuple[str, str, str]] = ("#DDCC77", "X", "--")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"hidden"})

    @property
    def samples(self) -> int:
        return self.policy_samples

    @property
    def needs_saliency(self) -> bool:
        return self.imitation_weight > 0

    def layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers before which tokens leave."""
        return self.select_layers or sorted({min(2, num_layers), num_layers // 2 + 1})

    def check_encoder(self, num_layers: int) -> None:
        if (last := self.layers(num_layers)[-1]) > num_layers:
            raise ValueError(f"select_layers has layer {last}; the encoder has {num_layers} layers")

    def decides_in(self, layer: int, num_layers: int) -> bool:
        return layer in self.layers(num_layers)

    def parameters(self, shape: EncoderShape) -> dict[str, Any]:
        policies: Any = torch.nn.ModuleList(torch.nn.Identity() for _ in range(shape.num_layers))
        for number in self.layers(shape.num_layers):
            policies[number - 1] = new_scorer(shape.hidden_size, INITIAL_ODDS)
        return {"policies": policies}

    def scores(self, tokens: Tokens, weights: Any) -> Tensor:
        """Compute the probability of keeping each token, (B, N) float32: 1 for the class token, 0 for one that left."""
        logits = float32_outputs(weights.policies[tokens.layer - 1], tokens.hidden.detach()).squeeze(-1)
        probabilities = torch.where(tokens.candidates, logits.sigmoid(), torch.ones_like(logits))
        return probabilities * (tokens.presence > 0)

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return tokens.alive & (self.scores(tokens, weights) >= self.select_threshold)

    def gate(self, tokens: Tokens, weights: Any) -> Tensor:
        probabilities = self.scores(tokens, weights)
        if tokens.training:
            kept = probabilities.detach().bernoulli()
        else:
            kept = (probabilities >= self.select_threshold).float()
        # what a token that has left would have cost behind the next policy is not in the gradient
        return (kept + (probabilities - probabilities.detach())) * tokens.alive

    def guidance(self, scores: Tensor, saliency: Tensor, weights: Any) -> Tensor | float:
        """Return the cross entropy with a selection of as many tokens as are kept, the most salient; a sum over layers.

        So it says which tokens stay, and not how many.
        """
        probabilities, present = scores.flatten(0, 1), scores.flatten(0, 1) > 0  # an example in a layer each
        others = present.clone()
        others[:, 0] = False
        counts = (probabilities.detach() * others).sum(dim=1).round().long() + 1
        salient = keep_highest(saliency.repeat(len(scores), 1), counts, present)
        chosen = torch.where(salient, probabilities, 1 - probabilities)
        losses = (-chosen.clamp(min=1e-6).log() * others).sum(dim=1) / others.sum(dim=1).clamp(min=1)
        return self.imitation_weight * losses.mean() * len(scores)

    def penalty(self, soft: SoftPass, weights: Any) -> Tensor | float:
        return self.select_weight * soft.kept_share

    def own_flops(self, shape: EncoderShape) -> float:
        return scorer_flops(shape.hidden_size)

    @property
    def learning_rate(self) -> float | None:
        return self.lr_policy

    def at_strength(self, strength: float) -> dict[str, Any]:
        return {"select_threshold": at_odds(self.select_threshold, strength)}
