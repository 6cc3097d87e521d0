"""Synthetic token sequences with the length distribution of a GLUE task, and padded batches of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

#: ``input_ids``, ``attention_mask`` and, if the model uses them, ``token_type_ids``: int64, shape (B, N) each.
Batch = dict[str, Tensor]

ORDERS = ("random", "sorted")
SHORTEST, LONGEST = 4, 128  # tokens: [CLS], a word or two, [SEP]; GLUE's usual truncation
_FIRST_WORD = 5  # lower ids are special tokens: BERT's [PAD], [CLS], …, RoBERTa's <s>, <pad>, …


@dataclass(frozen=True)
class LengthShape:
    """Log-normal distribution of token counts, clipped to [4, 128].

    Attributes:
        mean: mean tokens per sequence after clipping, special tokens included.
        spread: standard deviation of the logarithm.
    """

    mean: float
    spread: float


#: Fitted to GLUE's validation splits with BERT's tokenizer: the mean exactly, the spread roughly.
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


def random_sequences(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Generate random token ids of given lengths, without special tokens, so that no model ignores any of them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(_FIRST_WORD, vocab_size, length).tolist() for length in lengths]


def make_batches(
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    *,
    order: str = "random",
    pad_token_id: int = 0,
    token_types: Sequence[Sequence[int]] | None = None,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """Build batches, each padded on the right to its longest sequence.

    Args:
        sequences: token ids of each sequence.
        batch_size: B; the last batch may be smaller.
        order: ``random`` keeps the given order; ``sorted`` puts the longest first, which needs less padding.
        pad_token_id: padding value of ``input_ids``.
        token_types: token type ids of each sequence; None sets all to 0.
        device: device of the batches.
    """
    rows = list(range(len(sequences)))
    if order == "sorted":
        rows.sort(key=lambda row: -len(sequences[row]))
    batches = []
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        longest = max(len(sequences[row]) for row in chosen)
        ids = torch.full((len(chosen), longest), pad_token_id)
        mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
        for index, row in enumerate(chosen):
            count = len(sequences[row])
            ids[index, :count] = torch.tensor(sequences[row])
            mask[index, :count] = 1
            if token_types is not None:
                types[index, :count] = torch.tensor(token_types[row])
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches
