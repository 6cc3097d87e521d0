"""Settings and scores of methods that decide by what attention gives each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltp.pruning.importance import SCORING_MODES, importance_of, is_cumulated, read_by
from ltp.pruning.method import Method, setting

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


def scoring_mode_setting(default: str = "mean") -> Any:
    """Declare the field ``scoring_mode`` of a method with another default."""
    return setting(
        default,
        " | ".join(SCORING_MODES),
        is_valid=lambda value: value in SCORING_MODES,
        range=f"one of {', '.join(SCORING_MODES)}",
    )


@dataclass
class ScoredMethod(Method):
    """Decides by scores; ``scoring_mode`` says which, see :data:`~ltp.pruning.importance.SCORING_MODES`."""

    scoring_mode: str = scoring_mode_setting()
    score_length: int = setting(
        128,
        "the constant Z of scoring_mode=mean, in tokens",
        is_valid=lambda value: value >= 1,
        range="1 or more (tokens)",
        follows="task.max_length",
    )

    @property
    def reads(self) -> frozenset[str]:
        return read_by(self.scoring_mode)

    @property
    def carries(self) -> bool:
        return is_cumulated(self.scoring_mode)

    def carry(self, tokens: Tokens) -> Tensor:
        return self.importance(tokens)

    def scores(self, tokens: Tokens, weights: Any) -> Tensor:
        return self.importance(tokens)

    def importance(self, tokens: Tokens) -> Tensor:
        """Compute the importance of each token, (B, N) float32."""
        return importance_of(tokens, self.scoring_mode, self.score_length)
