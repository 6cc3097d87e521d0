"""No pruning: the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.method import Method, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class NoPruning(Method):
    """Keeps every token."""

    name: ClassVar[str] = "none"
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant("dense", "dense", description="It does not prune: it is a dense baseline in ltp's format."),
    )

    def decides_in(self, layer: int, num_layers: int) -> bool:
        return False  # so that no layer of a dense model pays for a decision

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return tokens.alive
