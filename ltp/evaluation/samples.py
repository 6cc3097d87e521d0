"""Token sequences for measurements: a tokenised random sample of a task's validation split."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltp.runs.settings import TaskSettings

if TYPE_CHECKING:  # transformers takes seconds to import; configuration errors should be fast
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sequences:
    """Tokenised sequences.

    Attributes:
        source: description for the report.
        ids: token ids of each sequence.
        types: token type ids of each sequence; None if the tokenizer makes none.
    """

    source: str
    ids: list[list[int]]
    types: list[list[int]] | None = None


def validation_sequences(
    task: TaskSettings,
    data_dir: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    count: int,
    seed: int = 0,
) -> Sequences:
    """Draw and tokenise a random sample of a task's main validation split.

    Args:
        task: the task's settings.
        data_dir: directory of the task's files; None for the default source.
        tokenizer: the model's tokenizer.
        count: number of sequences; a smaller split is used as a whole.
        seed: seed of the sample.

    Raises:
        UserError: the data are missing.
    """
    import numpy as np

    from ltp.runs.loading import read_splits

    splits = read_splits(task, data_dir)
    split = next(iter(splits.validation.values()))
    rows = np.random.default_rng(seed).permutation(len(split))[:count]
    examples = split[rows.tolist()]
    columns = {column: list(examples[column]) for column in splits.task.text_columns}
    encoded = splits.task.encode(tokenizer, columns, task.max_length)
    source = f"{task.name}, validation split, {len(rows)} of {len(split)} rows"
    return Sequences(source, encoded["input_ids"], encoded.get("token_type_ids"))
