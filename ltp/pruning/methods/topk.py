"""Top-k: a given share of the tokens, as in SpAtten's cascade token pruning (arXiv 2012.09852)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.ranked import RankedMethod
from ltp.pruning.scored import ScoredMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class TopK(ScoredMethod, RankedMethod):
    """Keeps the most important tokens of each input, a given share in each layer. It has no parameters."""

    name: ClassVar[str] = "topk"
    label: ClassVar[str] = "top-k"
    description: ClassVar[str] = (
        "Each layer keeps a given share of the tokens, the most important ones by the attention they "
        "receive (top-k, after SpAtten, [arXiv 2012.09852](https://arxiv.org/abs/2012.09852))."
    )
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[Mapping[str, Any]] = {"token_keep_rate": -0.4}
    grid: ClassVar[Mapping[str, str]] = {"prune.token_keep_rate": "0.4,0.2,0.0,-0.2,-0.4", "lr": "5e-6,1e-5,2e-5"}
    style: ClassVar[tuple[str, str, str]] = ("#009E73", "^", "-.")

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return self.keep(self.importance(tokens), tokens)
