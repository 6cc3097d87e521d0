"""Sequences to measure with: a sample of a task's validation split, as a checkpoint's tokenizer reads it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltp.runs.loading import check_token_ids
from ltp.runs.settings import TaskSettings

if TYPE_CHECKING:  # transformers takes seconds to import, and a mistake should not
    from transformers import PreTrainedTokenizerBase

    from ltp.model.classifier import LTPForSequenceClassification


@dataclass(frozen=True)
class Sequences:
    """What is measured on.

    Attributes:
        source: in words, for the report.
        ids: token ids of each sequence.
        types: their token types, where the tokenizer makes them.
    """

    source: str
    ids: list[list[int]]
    types: list[list[int]] | None = None


def validation_sequences(
    task: TaskSettings,
    data_dir: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    model: "LTPForSequenceClassification",
    count: int,
    seed: int = 0,
) -> Sequences:
    """A random sample of a task's main validation split.

    Args:
        task, data_dir: which task, and where it lies.
        tokenizer: makes the tokens.
        model: must know them.
        count: how many sequences; fewer where the split has fewer.
        seed: of the sample.

    Raises:
        UserError: the data are not there, or tokenizer and model do not belong together.
    """
    import numpy as np

    from ltp.runs.loading import read_splits

    splits = read_splits(task, data_dir)
    split = next(iter(splits.validation.values()))
    rows = np.random.default_rng(seed).permutation(len(split))[:count]
    chosen = split[rows.tolist()]
    texts = [list(chosen[column]) for column in splits.task.text_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=task.max_length)
    check_token_ids(max(max(row) for row in encoded["input_ids"]), model)
    source = f"{task.name}, validation split, {len(rows)} of {len(split)} rows"
    return Sequences(source, encoded["input_ids"], encoded.get("token_type_ids"))
