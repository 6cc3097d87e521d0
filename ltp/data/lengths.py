"""Synthetic sequence lengths: those of a GLUE task, or of a range. Does not import PyTorch."""

import math
import re
from dataclasses import dataclass
from statistics import NormalDist

SHORTEST, LONGEST = 4, 128  # tokens: [CLS], a word or two, [SEP]; GLUE's usual truncation


@dataclass(frozen=True)
class LengthShape:
    """Log-normal distribution of token counts, clipped to [4, 128].

    Attributes:
        mean: mean tokens per sequence after clipping, special tokens included.
        spread: standard deviation of the logarithm.
    """

    mean: float
    spread: float


#: Approximate GLUE's validation splits under BERT's tokenizer: the same mean and roughly the same spread.
LENGTHS = {
    "mrpc": LengthShape(mean=53, spread=0.32),
    "sst2": LengthShape(mean=25, spread=0.47),
    "rte": LengthShape(mean=64, spread=0.47),
}


def synthetic_lengths(name: str, count: int, seed: int = 0) -> list[int]:
    """Generate token counts that follow a distribution of :data:`LENGTHS`.

    They are quantiles in random order rather than random draws, so that even a small sample has the right mean.

    Args:
        name: key of :data:`LENGTHS`.
        count: number of sequences.
        seed: determines the order.
    """
    import numpy as np

    shape = LENGTHS[name]
    normal = NormalDist()
    steps = [normal.inv_cdf((index + 0.5) / count) for index in range(count)]

    def at(median: float) -> list[float]:
        return [min(max(median * math.exp(shape.spread * step), SHORTEST), LONGEST) for step in steps]

    low, high = 1.0, 4.0 * LONGEST
    for _ in range(60):  # clipping shifts the mean, so bisect for the median that yields it
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) / count < shape.mean else (low, middle)
    rng = np.random.default_rng(seed)
    return [round(length) for length in rng.permutation(at(low))]


def parsed_range(text: str) -> tuple[int, int] | None:
    """Read ``128`` as (128, 128) and ``384-512`` as (384, 512), the shortest and the longest; None for other texts."""
    if (found := re.fullmatch(r"(\d+)(?:-(\d+))?", text)) is None:
        return None
    return int(found[1]), int(found[2] or found[1])


def uniform_lengths(shortest: int, longest: int, count: int, seed: int = 0) -> list[int]:
    """Generate token counts evenly spread from the shortest to the longest, in an order that the seed determines."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [round(length) for length in rng.permutation(np.linspace(shortest, longest, count))]
