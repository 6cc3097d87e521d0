"""Random token sequences, and padded batches of sequences."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: ``input_ids``, ``attention_mask`` and, if the model uses them, ``token_type_ids``: int64, shape (B, N) each.
Batch = dict[str, Tensor]

_FIRST_WORD = 5  # lower ids are special tokens: BERT's [PAD], [CLS], …, RoBERTa's <s>, <pad>, …


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
        ids = np.full((len(chosen), longest), pad_token_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for index, row in enumerate(chosen):
            count = len(sequences[row])
            ids[index, :count] = sequences[row]
            mask[index, :count] = 1
            if token_types is not None:
                types[index, :count] = token_types[row]
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        batches.append({name: torch.from_numpy(array).to(device) for name, array in batch.items()})
    return batches
