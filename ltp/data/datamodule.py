"""GLUEDataModule: tokenises a task's splits once and provides length-grouped batches to Lightning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ltp.data.batching import TrainBatches, check_batch_size, evaluation_batches, matched_rows, steps_in_epoch
from ltp.data.sources import Splits
from ltp.data.tasks import Task
from ltp.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


class Collator:
    """Pad a batch on the right to its longest row.

    Args:
        pad_token_id: Padding value of `input_ids`; all other inputs are padded with 0.
        task: The task, which collates the labels.
    """

    def __init__(self, pad_token_id: int, task: Task) -> None:
        self.pad_token_id = pad_token_id
        self.task = task

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate tokenised rows.

        Returns:
            `input_ids`, `attention_mask` (1: a real token) and, if the tokenizer returns them,
            `token_type_ids`, each int64 of shape (batch, longest); `labels`, see `Task.collate_labels`.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        batch: Batch = {}
        for name in (name for name in rows[0] if name != "label"):
            fill = self.pad_token_id if name == "input_ids" else 0
            padded = np.full((len(rows), longest), fill, dtype=np.int64)
            for index, row in enumerate(rows):
                padded[index, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        batch["labels"] = self.task.collate_labels([row["label"] for row in rows], longest)
        return batch


class GLUEDataModule(pl.LightningDataModule):
    """Lightning DataModule of a task: tokenises its splits and batches them for training and validation.

    The Trainer needs `use_distributed_sampler=False`, because the batches are sharded here. For any number of
    processes, the optimiser steps see the same rows and every validation row is evaluated exactly once.
    A run that resumes from a checkpoint continues with the micro-batch after the last one processed.

    Args:
        splits: The task's splits, from `ltp.data.sources.load_splits`.
        tokenizer: A tokenizer with a padding token.
        batch_size: Rows per optimiser step, over all processes and accumulated micro-batches.
        eval_batch_size: Rows per validation batch and process.
        accumulate: Micro-batches per process and optimiser step.
        max_length: Maximum tokens of a row, special tokens included; longer rows are truncated.
        seed: Determines the order of training rows, together with the epoch.
        num_workers: Worker processes per data loader.

    Raises:
        UserError: A value is out of range; the message names the key.
    """

    def __init__(
        self,
        splits: Splits,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        eval_batch_size: int = 64,
        accumulate: int = 1,
        max_length: int = 128,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if eval_batch_size < 1:
            raise UserError(f"trainer.eval_batch_size={eval_batch_size}: must be at least 1.")
        if accumulate < 1:
            raise UserError(f"trainer.accumulate_grad_batches={accumulate}: must be at least 1.")
        check_batch_size(batch_size, 1, accumulate)
        _check_tokenizer(tokenizer, len(splits.task.text_columns), max_length)
        self.task = splits.task
        self.splits = splits
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.accumulate = accumulate
        self.max_length = max_length
        self.seed = seed
        self.num_workers = num_workers
        self._encoded: dict[str, datasets.Dataset] = {}
        self._train_batches: TrainBatches | None = None
        self._calibration_batches: dict[int, list[Batch]] = {}
        self._collate = Collator(tokenizer.pad_token_id, self.task)

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Names of the validation splits, in the order of the data loaders."""
        return tuple(self.splits.validation)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch; available before `setup`."""
        rows = len(self.splits.train)
        if self.task.has_windows:
            self._encode("train", self.splits.train)
            rows = len(self._encoded["train"])
        return steps_in_epoch(rows, self.batch_size, self._world_size * self.accumulate)

    def setup(self, stage: str | None = None) -> None:
        """Check that the splits are large enough for the processes, and tokenise them in memory.

        Args:
            stage: Lightning's stage. Only "fit" (or None) loads the training split.

        Raises:
            UserError: The batch cannot be split evenly, or a split is too small for the processes.
        """
        if stage in (None, "fit"):
            check_batch_size(self.batch_size, self._world_size, self.accumulate)
            if self.steps_per_epoch == 0:
                parts = self._world_size * self.accumulate
                raise UserError(
                    f"The training split has {len(self.splits.train)} rows, too few for trainer.devices"
                    f" ({self._world_size}) x trainer.accumulate_grad_batches ({self.accumulate}) = {parts}."
                )
            self._encode("train", self.splits.train)
        for name, split in self.splits.validation.items():
            if len(split) < self._world_size:
                raise UserError(f"{name} has {len(split)} rows, too few for trainer.devices={self._world_size}.")
            self._encode(name, split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this process's micro-batches; a resumed run continues at its checkpoint's position."""
        encoded = self._encoded["train"]
        batches = TrainBatches(
            _lengths(encoded),
            self.batch_size,
            accumulate=self.accumulate,
            world_size=self._world_size,
            rank=self._rank,
            seed=self.seed,
            label_counts=self.task.label_counts(encoded["label"]),
        )
        self._train_batches = batches
        if self.trainer is not None:
            _resume(batches, self.trainer)
        return self._loader(encoded, batches)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per split in `validation_splits`, over this process's share of the rows."""
        loaders = []
        for name in self.validation_splits:
            encoded = self._encoded[name]
            batches = evaluation_batches(
                _lengths(encoded), self.eval_batch_size, world_size=self._world_size, rank=self._rank
            )
            loaders.append(self._loader(encoded, batches))
        return loaders

    def loss_weight(self, batch_idx: int, rows: int) -> float:
        """Compute the weight of a micro-batch's mean loss that makes the optimiser step's loss a mean over its rows.

        Lightning averages over accumulated micro-batches and DDP over processes. In the smaller batch at the end of
        an epoch, micro-batches differ in their number of rows.

        Args:
            batch_idx: Lightning's batch index in the epoch.
            rows: Number of rows in the micro-batch.

        Returns:
            `rows * micro_batches / rows of the optimiser step`.

        Raises:
            RuntimeError: `train_dataloader` was not called.
        """
        if self._train_batches is None:
            raise RuntimeError("loss_weight is known once train_dataloader was called")
        return self._train_batches.loss_weight(batch_idx, rows)

    def label_weight(self, batch_idx: int, labels: torch.Tensor) -> float | None:
        """Compute the weight that makes the optimiser step's task loss a mean over its labels.

        Args:
            batch_idx: Lightning's batch index in the epoch.
            labels: Those of the micro-batch.

        Returns:
            None if each row has one label: then it is `loss_weight`.
        """
        if self._train_batches is None or self._train_batches.label_counts is None:  # labels stay on their device
            return None
        counts = self.task.label_counts(labels.tolist())
        assert counts is not None
        return self._train_batches.label_weight(batch_idx, sum(counts))

    def calibration_batches(self, count: int) -> list[Batch]:
        """Return this process's share of a fixed training sample, matched in length to the main validation split.

        Args:
            count: Rows in the sample, over all processes.
        """
        if count not in self._calibration_batches:
            encoded = self._encoded["train"]
            shard = self._calibration_rows(count)[self._rank :: self._world_size].tolist()
            starts = range(0, len(shard), self.eval_batch_size)
            self._calibration_batches[count] = [
                self._collate([encoded[row] for row in shard[start : start + self.eval_batch_size]]) for start in starts
            ]
        return self._calibration_batches[count]

    def calibration_lengths(self, count: int) -> np.ndarray:
        """Return the tokens in each row of the `calibration_batches` sample, int, shape (rows,). Requires `setup`."""
        return self.train_lengths[self._calibration_rows(count)]

    def _calibration_rows(self, count: int) -> np.ndarray:
        return matched_rows(self.train_lengths, _lengths(self._encoded[self.validation_splits[0]]), count)

    def rows_of(self, split: str) -> int:
        """Return how many rows of the model a split has. Requires `setup`."""
        return len(self._encoded[split])

    @property
    def train_lengths(self) -> np.ndarray:
        """Tokens in each training row, special tokens included: int, shape (rows,). Requires `setup`."""
        return _lengths(self._encoded["train"])

    @property
    def label_counts(self) -> list[int] | None:
        """Number of examples of each class in the main validation split; None if they have not one each."""
        if not self.task.has_one_class:
            return None
        labels = next(iter(self.splits.validation.values()))["label"]
        return np.bincount(np.asarray(labels), minlength=self.task.num_labels).tolist()

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _encode(self, name: str, split: datasets.Dataset) -> None:
        if name in self._encoded:
            return

        truncated = 0

        def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            nonlocal truncated
            encoded = self.task.encode(self.tokenizer, {**rows, "example": numbers}, self.max_length)
            truncated += self.task.truncated_rows(rows["label"], encoded, self.max_length)
            return encoded

        with _disabled_progress_bars():
            self._encoded[name] = split.map(
                encode,
                batched=True,
                with_indices=True,
                remove_columns=split.column_names,
                keep_in_memory=True,
                new_fingerprint=f"{name}-encoded",  # nothing is cached: avoids hashing the tokenizer
            )
        if truncated and self._rank == 0:
            log.warning(
                "%s: %d of %d rows have labels beyond task.max_length=%d: these are neither learned nor counted",
                *(name, truncated, len(split), self.max_length),
            )

    def _loader(self, encoded: datasets.Dataset, batches: Any) -> DataLoader[Batch]:
        return DataLoader(
            encoded,  # a map-style dataset, and fetches a batch at once
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def _resume(batches: TrainBatches, trainer: pl.Trainer) -> None:
    """Start the first iteration over the batches at the position of the checkpoint being restored."""
    fit_loop: Any = trainer.fit_loop
    epoch, done = fit_loop.epoch_progress.current.processed, 0
    if fit_loop.restarting:
        # not `completed`: it lags by one if the checkpoint was saved in a batch's last hook
        done = fit_loop.epoch_loop.batch_progress.current.processed
        if done >= len(batches):  # saved at the end of an epoch
            epoch, done = epoch + 1, 0
        # Lightning looks for the loader's `state_dict` and cannot know that the order is restored here
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    batches.resume(epoch, done)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: int, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < special + texts:
        raise UserError(f"task.max_length={max_length}: too short; {special} tokens are special.")
    if max_length > tokenizer.model_max_length:
        raise UserError(f"task.max_length={max_length}: the model reads at most {tokenizer.model_max_length} tokens.")
    if tokenizer.pad_token_id is None:
        raise UserError(f"The tokenizer {tokenizer.name_or_path!r} has no padding token; give it one.")


def _lengths(encoded: datasets.Dataset) -> np.ndarray:
    """Return the tokens in each row, special tokens included: int, shape (rows,)."""
    return pc.list_value_length(encoded.data["input_ids"]).to_numpy()


@contextmanager
def _disabled_progress_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets`: tokenising takes about a second, and every rank would show them."""
    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()
