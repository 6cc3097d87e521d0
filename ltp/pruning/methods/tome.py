"""ToMe: the most alike tokens merge (Bolya et al., arXiv 2210.09461)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.lazy import torch
from ltp.pruning.ranked import RankedMethod
from ltp.pruning.ranking import keep_counts

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


def matched(keys: Tensor, alive: Tensor, merges: Tensor) -> Tensor:
    """Match alternate tokens by the cosine of their keys, and merge the most alike pairs.

    The tokens alive are divided in turn into two sets. Each token of the second set, of which the class token is none,
    goes with its most alike token of the first; the ``merges`` most alike of these pairs merge.

    Args:
        keys: (B, N, d) float.
        alive: (B, N) bool.
        merges: number of tokens that go into another, (B,) int64.

    Returns:
        The column that each token goes into: its own for a token that stays, (B, N) int64.
    """
    index = alive.long().cumsum(dim=1) - 1  # among the tokens alive
    first, second = alive & (index % 2 == 0) & (index > 0), alive & (index % 2 == 1)
    keys = keys.float()
    # neither `normalize` nor `max` below: shape inference of ONNX graphs loses track of them
    keys = keys / keys.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
    cosine = keys @ keys.transpose(1, 2)  # (B, N of the second set, N of the first)
    cosine = cosine.masked_fill(~first[:, None, :], -math.inf)
    into = cosine.argmax(dim=2)
    best = cosine.gather(2, into[:, :, None]).squeeze(2).masked_fill(~second, -math.inf)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    leaves = second & (rank < merges[:, None]) & (best > -math.inf)
    columns = torch.arange(alive.shape[1], device=alive.device)
    return torch.where(leaves, into, columns)


@dataclass
class ToMe(RankedMethod):
    """Merges tokens into alike ones. A layer merges at most half of them."""

    name: ClassVar[str] = "tome"
    label: ClassVar[str] = "ToMe merging"
    description: ClassVar[str] = (
        "Each layer merges the tokens whose attention keys are most alike (ToMe, "
        "[arXiv 2210.09461](https://arxiv.org/abs/2210.09461))."
    )
    merges: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[dict[str, Any]] = {"token_keep_rate": -0.4}
    style: ClassVar[tuple[str, str, str]] = ("#000000", "X", "-.")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"keys"})

    def kept(self, counts: Tensor, alive: Tensor) -> Tensor:
        # every second token may leave, if there is one of the first set to go into
        most = torch.where(alive > 2, alive // 2, 0)
        return torch.maximum(super().kept(counts, alive), alive - most)

    def merge_targets(self, tokens: Tokens, weights: Any) -> Tensor:
        kept = keep_counts(self.rates(tokens.num_layers)[tokens.layer - 1], tokens.lengths)
        merges = (tokens.alive.sum(dim=1) - kept).clamp(min=0)
        return matched(tokens.keys, tokens.alive, merges)
