"""Settings and rule of methods that keep a given share of the tokens of each input in each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ltp.pruning.lazy import torch
from ltp.pruning.method import Method, setting
from ltp.pruning.ranking import SHAPES, keep_counts, keep_highest, keep_rates

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


def _are_rates(value: Any) -> bool:
    rates = list(value)
    return bool(rates) and all(0 <= rate <= 1 for rate in rates) and sorted(rates, reverse=True) == rates


@dataclass
class RankedMethod(Method):
    """Keeps the tokens with the highest scores; how many of them, the keep rates of the layers say."""

    token_keep_rate: float = setting(
        0.2,
        "share of the input tokens that the last layer keeps; may be negative",
        is_valid=lambda value: -10 <= value <= 1,
        range="in [-10, 1]",
        published="−0.4 to 0.4",
        place="rate",
        short="rate",
        set_by_budget=True,
    )
    keep_shape: str = setting(
        "linear",
        "linear, or constant: each layer keeps the same share of the tokens that are left",
        is_valid=lambda value: value in SHAPES,
        range=" or ".join(SHAPES),
    )
    first_layer: int | None = setting(
        None,
        "first layer that prunes; null: the published one, max(3, ceil(0.15·L)) + 1",
        with_budget=1,  # the published one cannot reach a low budget: 0.58 of the FLOPs with six layers
        is_valid=lambda value: value >= 1,
        range="1 or more",
    )
    keep_rates: list[float] | None = setting(  # noqa: RUF009 (a field, as the others)
        None,
        "keep rate of each layer, instead of a shape",
        is_valid=_are_rates,
        range="shares in [0, 1] that do not rise, one for each layer",
    )

    cost_depends_on_weights: ClassVar[bool] = False

    def rates(self, num_layers: int) -> list[float]:
        """Return the keep rates of layers 1..L: shares of the input tokens, in [0, 1].

        Raises:
            ValueError: there are not as many rates as layers, or no layer is left to prune.
        """
        if self.keep_rates is not None:
            if len(self.keep_rates) != num_layers:
                raise ValueError(f"keep_rates has {len(self.keep_rates)} rates; the encoder has {num_layers} layers")
            return list(self.keep_rates)
        if self.first_layer is not None and self.first_layer > num_layers:
            raise ValueError(f"first_layer is {self.first_layer}; the encoder has {num_layers} layers")
        return keep_rates(self.token_keep_rate, num_layers, shape=self.keep_shape, first_layer=self.first_layer)

    def check_encoder(self, num_layers: int) -> None:
        self.rates(num_layers)

    def with_rates(self, rates: Sequence[float]) -> Self:
        """Return the method with the given keep rates of layers 1..L."""
        return dataclasses.replace(self, **self.setting_of(rates))

    @staticmethod
    def setting_of(rates: Sequence[float]) -> dict[str, Any]:
        """Return the setting, by name, that gives the keep rates of layers 1..L."""
        return {"keep_rates": list(rates)}

    def expected_lengths(self, lengths: Tensor, decides: Sequence[bool]) -> Tensor:
        """Return the tokens alive entering each layer, and after the last, (B, L+1) int64.

        Args:
            lengths: number of real tokens of each input, (B,) int64.
            decides: whether tokens leave in layers 1..L.
        """
        kept = [lengths]
        for rate, has_decision in zip(self.rates(len(decides)), decides, strict=True):
            kept.append(self.kept(keep_counts(rate, lengths), kept[-1]) if has_decision else kept[-1])
        return torch.stack(kept, dim=1)

    def kept(self, counts: Tensor, alive: Tensor) -> Tensor:
        """Return how many of the tokens ``alive``, (B,), a layer keeps where its rate asks for ``counts``, (B,)."""
        return torch.minimum(counts, alive)

    def keep(self, scores: Tensor, tokens: Tokens) -> Tensor:
        """Keep as many tokens with the highest scores, (B, N) float, as the layer's rate says: (B, N) bool."""
        rate = self.rates(tokens.num_layers)[tokens.layer - 1]
        return keep_highest(scores, keep_counts(rate, tokens.lengths), tokens.alive)

    def at_strength(self, strength: float) -> dict[str, Any]:
        if self.keep_rates is not None:
            return {"keep_rates": [max(1 - (1 - rate) * strength, 0.0) for rate in self.keep_rates]}
        pruned = max(1.0 - self.token_keep_rate, 1e-3)
        return {"token_keep_rate": max(1.0 - pruned * strength, -10.0)}

    @property
    def strength_range(self) -> tuple[float, float]:
        pruned = max(1.0 - self.token_keep_rate, 1e-3)
        return 1e-5 / pruned, 11 / pruned  # rates of 1 − 1e-5 and of −10
