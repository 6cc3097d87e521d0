"""Random token sequences, and padded batches of sequences."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: ``input_ids`` and ``attention_mask``, and ``token_type_ids`` where the model has them: (B, N) int64 each.
Batch = dict[str, Tensor]

_FIRST_WORD = 5  # ids below are special tokens: [PAD], [CLS], … of BERT, <s>, <pad>, … of RoBERTa


def random_sequences(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Token ids of given lengths, without special ones, so that every model takes all of them for real."""
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
    """Batches with dynamic padding: on the right, to the longest sequence of the batch.

    Args:
        sequences: token ids.
        batch_size: B; the last batch may be smaller.
        order: ``random`` takes them as they come; ``sorted`` the longest first, so that little is padded.
        pad_token_id: what ``input_ids`` are padded with.
        token_types: of each sequence, where the tokenizer makes them; else all are 0.
        device: where the batches go.
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
