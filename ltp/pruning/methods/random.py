"""Control: as many tokens as top-k, drawn at random. Every other method should beat it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.method import setting
from ltp.pruning.ranked import RankedMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens

_PRIME = 2_147_483_647  # 2^31 − 1: products of two residues fit in 64 bits


def drawn(positions: Tensor, lengths: Tensor, seed: int) -> Tensor:
    """Draw a number for each position of an input: the same for inputs of the same length, whatever the batch.

    Args:
        positions: (B, N) int64.
        lengths: number of real tokens of each input, (B,) int64.
        seed: of the drawing.

    Returns:
        (B, N) float64 in [0, 1).
    """
    state = (positions * 1_000_003 + lengths[:, None] * 7_919 + seed * 104_729 + 12_345) % _PRIME
    for _ in range(3):
        state = (state * state + state * 48_271 + 1) % _PRIME
    return state.double() / _PRIME


@dataclass
class Random(RankedMethod):
    """Keeps a given share of the tokens, drawn at random once for each length of input."""

    draw: int = setting(0, "seed of the drawing", is_valid=lambda value: 0 <= value < 1000, range="in [0, 1000)")

    name: ClassVar[str] = "random"
    label: ClassVar[str] = "random tokens"
    description: ClassVar[str] = "Each layer keeps a given share of the tokens, drawn at random: a control."
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[dict[str, Any]] = {"token_keep_rate": -0.4}

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"positions"})

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return self.keep(drawn(tokens.positions, tokens.lengths, self.draw), tokens)
