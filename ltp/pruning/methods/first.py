"""Control: the first tokens of the input, as truncation would leave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.ranked import RankedMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class First(RankedMethod):
    """Keeps a given share of the tokens, the first ones."""

    name: ClassVar[str] = "first"
    label: ClassVar[str] = "first tokens"
    description: ClassVar[str] = "Each layer keeps a given share of the tokens, the first ones: a control."
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[dict[str, Any]] = {"token_keep_rate": -0.4}

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return self.keep(-tokens.alive.float().cumsum(dim=1), tokens)
