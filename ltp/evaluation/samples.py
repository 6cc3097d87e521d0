"""Token sequences for measurements: a tokenised random sample of a task's validation split."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ltp.errors import UserError
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import load_tokenizer, read_splits, stored_task
from ltp.runs.plan import task_of
from ltp.runs.settings import TaskSettings

if TYPE_CHECKING:  # transformers takes seconds to import; configuration errors should be fast
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ltp.data.sequences import Batch
    from ltp.data.tasks import Task
    from ltp.model.pretrained import LTPPreTrainedModel

log = logging.getLogger("ltp")


@dataclass(frozen=True)
class Sequences:
    """Tokenised sequences.

    Attributes:
        source: description for the report.
        ids: token ids of each sequence.
        types: token type ids of each sequence; None if the tokenizer makes none.
        task, labels: the task, and the label of each sequence; None of synthetic ones.
    """

    source: str
    ids: list[list[int]]
    types: list[list[int]] | None = None
    task: "Task | None" = None
    labels: list[Any] | None = None

    def longest_first(self) -> "Sequences":
        """Order the sequences by length."""
        rows = sorted(range(len(self.ids)), key=lambda row: -len(self.ids[row]))
        ids, types, labels = (
            column and [column[row] for row in rows] for column in (self.ids, self.types, self.labels)
        )
        return replace(self, ids=ids or [], types=types, labels=labels)

    def batches(self, model: "LTPPreTrainedModel", size: int) -> "list[Batch]":
        """Return batches of the inputs that a model takes, in the order of the sequences, on its device."""
        from ltp.data.sequences import make_batches

        padding = model.config.dense_config.get("pad_token_id") or 0
        batches = make_batches(self.ids, size, pad_token_id=padding, token_types=self.types, device=model.device)
        names = model.family.input_names(model.dense.config)
        return [{name: batch[name] for name in names} for batch in batches]

    def score(self, logits: "Tensor") -> float | None:
        """Compute the main metric of the task; None if it is not defined on these sequences.

        Args:
            logits: (S, num_labels) float32, in the order of the sequences.
        """
        from ltp.evaluation.scoring import score

        if self.task is None or self.labels is None or not self.task.scores_rows:
            return None
        name = self.task.main_metric
        return score(self.task, self.task.build_metric(name), name, logits, self.task.collate_labels(self.labels, 0))


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

    splits = read_splits(task, data_dir)
    split = next(iter(splits.validation.values()))
    rows = np.random.default_rng(seed).permutation(len(split))[:count]
    examples = split[rows.tolist()]
    columns = {column: list(examples[column]) for column in splits.task.text_columns}
    encoded = splits.task.encode(tokenizer, columns, task.max_length)
    source = f"{task.name}, validation split, {len(rows)} of {len(split)} rows"
    return Sequences(source, encoded["input_ids"], encoded.get("token_type_ids"), splits.task, list(examples["label"]))


def own_sequences(
    checkpoint: Checkpoint, model: "LTPPreTrainedModel", count: int, data_dir: str | None = None
) -> Sequences:
    """Draw a sample of a run's own validation split, or random tokens if that cannot be read.

    Args:
        checkpoint, model: the run, and its model.
        count: number of sequences.
        data_dir: directory of the task's files; None for the run's.

    Raises:
        UserError: ``data_dir`` was given, and the split cannot be read from it.
    """
    from ltp.data.lengths import synthetic_lengths
    from ltp.data.sequences import random_sequences

    try:
        if (stored := stored_task(checkpoint)) is None:
            raise UserError("its config.yaml is missing")
        tokenizer = load_tokenizer(checkpoint, task_of(stored.task))
        return validation_sequences(stored.task, data_dir or stored.data_dir, tokenizer, count)
    except UserError as error:
        if data_dir is not None:
            raise
        log.info("the run's own validation split is out of reach: %s", error)
    max_length = model.config.max_input_tokens
    lengths = [min(length, max_length) for length in synthetic_lengths("sst2", count)]
    return Sequences("random tokens", random_sequences(lengths, model.config.vocab_size))
