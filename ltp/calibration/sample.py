"""What a model is calibrated on: the task's data, and the training examples that measure a cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltp.data.datamodule import GLUEDataModule
from ltp.data.sequences import Batch, make_batches
from ltp.errors import UserError
from ltp.model.classifier import LTPForSequenceClassification
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import check_length, check_token_ids, read_splits
from ltp.runs.plan import check_labels
from ltp.runs.settings import TaskSettings

EVALUATION_BATCH = 64
_TIMED = 64  # sequences that latency is measured on, unless that is fewer than _FEWEST batches
_FEWEST = 5


def read_data(
    checkpoint: Checkpoint,
    task: TaskSettings,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: LTPForSequenceClassification,
) -> dict[str, GLUEDataModule]:
    """A task's validation splits, tokenised: a data module each; the first, the main one's, has training rows too.

    Raises:
        UserError: data, tokenizer and model do not fit.
    """
    splits = read_splits(task, data_dir)
    check_labels(checkpoint, splits.task)
    check_length("task.max_length", task.max_length, model, tokenizer)
    modules = {}
    for name, split in splits.validation.items():
        modules[name] = GLUEDataModule(
            dataclasses.replace(splits, validation={name: split}),
            tokenizer,
            batch_size=EVALUATION_BATCH,
            eval_batch_size=EVALUATION_BATCH,
            max_length=task.max_length,
        )
        modules[name].setup("validate" if len(modules) > 1 else "fit")
    return modules


@dataclass(frozen=True)
class Sample:
    """Training examples to measure with, as long as those of the main validation split. Labels are not among them.

    Attributes:
        ids: token ids of each, the short ones first.
        types: their token types, where the tokenizer makes them.
        pad_token_id: what batches are padded with.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    pad_token_id: int

    @classmethod
    def of(cls, data: GLUEDataModule, examples: int, model: LTPForSequenceClassification) -> Sample:
        """The sample that training calibrates on, of so many examples, or fewer where there are no more.

        Raises:
            UserError: the tokenizer does not belong to the model.
        """
        found: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for batch in data.calibration_batches(examples):
            check_token_ids(int(batch["input_ids"].max()), model)
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            for name in found.keys() & batch.keys():
                found[name] += [row[:length] for row, length in zip(batch[name].tolist(), lengths, strict=True)]
        return cls(found["input_ids"], found["token_type_ids"] or None, int(data.tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, *, every: int = 1) -> list[Batch]:
        """All of it, or every so manieth, in batches of examples that are about as long."""
        return self._batches(range(every // 2, len(self), every), size)

    def timed_batches(self, size: int, seed: int = 0) -> list[Batch]:
        """As many full batches as latency is measured on, in random order; their lengths are those of the sample.

        Raises:
            UserError: the sample is smaller than a batch.
        """
        if size > len(self):
            raise UserError(
                f"batch_size={size}: there are {len(self)} examples to measure with; give more with examples=…, or "
                "take a smaller batch"
            )
        count = min(max(_TIMED // size, _FEWEST), len(self) // size) * size
        rows = ((np.arange(count) + 0.5) * len(self) / count).astype(int)  # quantiles
        return self._batches(np.random.default_rng(seed).permutation(rows).tolist(), size)

    def _batches(self, rows: Sequence[int], size: int) -> list[Batch]:
        types = None if self.types is None else [self.types[row] for row in rows]
        ids = [self.ids[row] for row in rows]
        return make_batches(ids, size, pad_token_id=self.pad_token_id, token_types=types)
