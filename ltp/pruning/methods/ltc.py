"""LTC: one layer pools neighbouring tokens to a share of the length (arXiv 2605.20683)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.method import Method, setting
from ltp.pruning.ranking import share

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class LTC(Method):
    """Averages neighbouring tokens in one layer, by adaptive pooling to a share of the input's length."""

    pool_rate: float = setting(
        0.5,
        "share of the tokens after pooling",
        is_valid=lambda value: 0 <= value <= 1,
        range="in [0, 1]",
        place="rate",
        short="rate",
        set_by_budget=True,
    )
    pool_layer: int | None = setting(
        None,
        "the layer that pools; null: the one before the middle",
        is_valid=lambda value: value >= 1,
        range="1 or more",
    )

    name: ClassVar[str] = "ltc"
    label: ClassVar[str] = "LTC pooling"
    description: ClassVar[str] = (
        "One layer averages neighbouring tokens to a share of the length (LTC, "
        "[arXiv 2605.20683](https://arxiv.org/abs/2605.20683))."
    )
    merges: ClassVar[bool] = True
    cost_depends_on_weights: ClassVar[bool] = False
    shown: ClassVar[tuple[str, ...]] = ("pool_rate",)
    demo: ClassVar[Mapping[str, Any]] = {"pool_layer": 1}

    def check_encoder(self, num_layers: int) -> None:
        if self.pool_layer is not None and self.pool_layer > num_layers:
            raise ValueError(f"pool_layer is {self.pool_layer}; the encoder has {num_layers} layers")

    def decides_in(self, layer: int, num_layers: int) -> bool:
        return layer == (self.pool_layer or max(num_layers // 2, 1))

    def merge_targets(self, tokens: Tokens, weights: Any) -> Tensor:
        # not an expanded `arange`: shape inference of ONNX graphs loses track of that
        columns = torch.ones_like(tokens.alive, dtype=torch.int64).cumsum(dim=1) - 1
        # the class token is kept apart; the m others are divided into k groups: token i goes into group floor(i·k/m)
        others = (tokens.alive.sum(dim=1, keepdim=True) - 1).clamp(min=1)
        groups = share(self.pool_rate, others).ceil().long().clamp(min=1)
        group = (columns - 1) * groups // others
        first = (group * others + groups - 1) // groups + 1  # the smallest column of the group
        return torch.where(tokens.alive & (columns > 0), first, columns)

    def at_strength(self, strength: float) -> dict[str, Any]:
        return {"pool_rate": min(max(1 - (1 - self.pool_rate) * strength, 0.0), 1.0)}
