"""Control: tokens at equal distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.ranked import RankedMethod
from ltp.pruning.ranking import keep_counts

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class Every(RankedMethod):
    """Keeps a given share of the tokens, every k-th of those that are left."""

    name: ClassVar[str] = "every"
    label: ClassVar[str] = "every k-th token"
    description: ClassVar[str] = "Each layer keeps a given share of the tokens, at equal distances: a control."
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[dict[str, Any]] = {"token_keep_rate": -0.4}

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        rate = self.rates(tokens.num_layers)[tokens.layer - 1]
        left = tokens.alive.sum(dim=1, keepdim=True)
        kept = torch.minimum(keep_counts(rate, tokens.lengths)[:, None], left)
        index = tokens.alive.long().cumsum(dim=1) - 1  # of each token among those that are left
        # token i starts the j-th of k equal parts of the n that are left if floor(i·k/n) rises there
        starts = (index * kept).div(left, rounding_mode="floor") != ((index - 1) * kept).div(
            left, rounding_mode="floor"
        )
        return tokens.alive & (starts | (index == 0))
