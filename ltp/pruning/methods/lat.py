"""LAT: one model for every length configuration, by sandwich training (Kim and Cho, arXiv 2010.07003).

Each training step runs the whole model, the smallest configuration and random ones between; the whole one learns from
the labels and teaches the others. A budget then chooses a configuration.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ltp.pruning.method import Method, setting
from ltp.pruning.ranked import RankedMethod
from ltp.pruning.scored import ScoredMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ltp.pruning.tokens import Tokens


@dataclass
class LAT(ScoredMethod, RankedMethod):
    """Keeps the most important tokens; trained for many keep rates at once."""

    length_drop: float = setting(
        0.2,
        "largest share of the tokens left that a layer drops in training; the smallest configuration drops it in each",
        is_valid=lambda value: 0 < value < 1,
        range="above 0 and below 1",
        published="0.2",
        place="drop",
    )
    random_passes: int = setting(
        2,
        "random configurations in a training step, beside the whole model and the smallest one",
        is_valid=lambda value: 0 <= value <= 16,
        range="in [0, 16]",
        published="2",
    )

    name: ClassVar[str] = "lat"
    label: ClassVar[str] = "LAT"
    description: ClassVar[str] = (
        "Each layer keeps a given share of the tokens, the most important ones; the model was trained for many shares "
        "at once (Length-Adaptive Transformer, [arXiv 2010.07003](https://arxiv.org/abs/2010.07003))."
    )
    shown: ClassVar[tuple[str, ...]] = ("token_keep_rate",)
    demo: ClassVar[dict[str, Any]] = {"token_keep_rate": -0.4}
    style: ClassVar[tuple[str, str, str]] = ("#882255", "p", "-")

    def survivors(self, tokens: Tokens, weights: Any) -> Tensor:
        return self.keep(self.importance(tokens), tokens)

    def passes(self, num_layers: int, seed: int, step: int) -> Sequence[Method]:
        draw = random.Random(f"{seed} {step}")
        drops = [[self.length_drop] * num_layers]
        drops += [[draw.uniform(0, self.length_drop) for _ in range(num_layers)] for _ in range(self.random_passes)]
        return [dataclasses.replace(self, keep_rates=_rates(shares)) for shares in drops]


def _rates(drops: Sequence[float]) -> list[float]:
    """Return the keep rates of layers that each drop a share of the tokens left."""
    rates, rate = [], 1.0
    for share in drops:
        rate *= 1 - share
        rates.append(rate)
    return rates
