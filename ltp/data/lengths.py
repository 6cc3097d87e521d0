"""Synthetic lengths of token sequences, like those of GLUE tasks. Needs no PyTorch."""

import math
from dataclasses import dataclass
from statistics import NormalDist

SHORTEST, LONGEST = 4, 128  # tokens: [CLS], a word or two, [SEP]; GLUE's usual truncation


@dataclass(frozen=True)
class LengthShape:
    """A log-normal distribution of token counts, clipped to 4..128.

    Attributes:
        mean: tokens a sequence after clipping, special ones included.
        spread: standard deviation of the logarithm.
    """

    mean: float
    spread: float


#: Like the validation splits of GLUE under BERT's tokenizer: their mean and, roughly, their spread.
LENGTHS = {
    "mrpc": LengthShape(mean=53, spread=0.32),
    "sst2": LengthShape(mean=25, spread=0.47),
    "rte": LengthShape(mean=64, spread=0.47),
}


def synthetic_lengths(name: str, count: int, seed: int = 0) -> list[int]:
    """Token counts of a distribution of :data:`LENGTHS`.

    They are its quantiles in random order rather than random draws, so that few sequences have its mean too.

    Args:
        name: one of :data:`LENGTHS`.
        count: how many.
        seed: decides the order.
    """
    import numpy as np

    shape = LENGTHS[name]
    normal = NormalDist()
    steps = [normal.inv_cdf((index + 0.5) / count) for index in range(count)]

    def at(median: float) -> list[float]:
        return [min(max(median * math.exp(shape.spread * step), SHORTEST), LONGEST) for step in steps]

    low, high = 1.0, 4.0 * LONGEST
    for _ in range(60):  # clipping moves the mean, so the median that gives it is searched
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) / count < shape.mean else (low, middle)
    rng = np.random.default_rng(seed)
    return [round(length) for length in rng.permutation(at(low))]
