"""Data of a calibration: the validation splits, and the training examples on which a cost is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltp.data.datamodule import GLUEDataModule
from ltp.data.sequences import Batch, make_batches
from ltp.errors import UserError
from ltp.model.pretrained import LTPPreTrainedModel
from ltp.runs.checkpoints import Checkpoint
from ltp.runs.loading import check_length, read_splits
from ltp.runs.plan import check_labels
from ltp.runs.settings import TaskSettings

EVALUATION_BATCH = 64
_TIMED_SEQUENCES = 64  # for latency; at least _MIN_TIMED_BATCHES batches are used
_MIN_TIMED_BATCHES = 5


def read_data(
    checkpoint: Checkpoint,
    task: TaskSettings,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerBase,
    model: LTPPreTrainedModel,
) -> GLUEDataModule:
    """Read and tokenise a task's training and validation splits.

    Raises:
        UserError: the data are missing, or data, tokenizer and model do not fit.
    """
    splits = read_splits(task, data_dir)
    check_labels(checkpoint, splits.task)
    check_length("task.max_length", task.max_length, model, tokenizer)
    size, max_length = EVALUATION_BATCH, task.max_length
    data = GLUEDataModule(splits, tokenizer, batch_size=size, eval_batch_size=size, max_length=max_length)
    data.setup("fit")
    return data


@dataclass(frozen=True)
class Sample:
    """Training examples without labels, with input lengths distributed as in the main validation split.

    Attributes:
        ids: token ids of each example, shortest first.
        types: token type ids of each example; None if the tokenizer makes none.
        pad_token_id: padding of the token ids.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    pad_token_id: int

    @classmethod
    def from_data(cls, data: GLUEDataModule, examples: int) -> Sample:
        """Take the sample on which training calibrates its budgets.

        Args:
            data: the data module, after ``setup("fit")``.
            examples: size of the sample; a smaller training split is used as a whole.
        """
        columns: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for batch in data.calibration_batches(examples):
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            for name in columns.keys() & batch.keys():
                columns[name] += [row[:length] for row, length in zip(batch[name].tolist(), lengths, strict=True)]
        return cls(columns["input_ids"], columns["token_type_ids"] or None, int(data.tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, *, every: int = 1) -> list[Batch]:
        """Return all examples, or one in ``every``, in batches of ``size`` examples of similar length."""
        return self._batches(range(every // 2, len(self), every), size)

    def timed_batches(self, size: int, seed: int = 0) -> list[Batch]:
        """Return the full batches on which latency is measured: quantiles of the sample's lengths, in random order.

        Args:
            size: examples per batch.
            seed: seed of the order.

        Raises:
            UserError: the sample is smaller than a batch.
        """
        if size > len(self):
            raise UserError(
                f"batch_size={size}: there are {len(self)} examples to measure with; give more with examples=…, or "
                "take a smaller batch"
            )
        count = min(max(_TIMED_SEQUENCES // size, _MIN_TIMED_BATCHES), len(self) // size) * size
        rows = ((np.arange(count) + 0.5) * len(self) / count).astype(int)  # quantiles
        return self._batches(np.random.default_rng(seed).permutation(rows).tolist(), size)

    def _batches(self, rows: Sequence[int], size: int) -> list[Batch]:
        types = None if self.types is None else [self.types[row] for row in rows]
        ids = [self.ids[row] for row in rows]
        return make_batches(ids, size, pad_token_id=self.pad_token_id, token_types=types)
