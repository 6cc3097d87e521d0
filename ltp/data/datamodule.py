"""GLUEDataModule: tokenises a task's splits once and feeds them to Lightning in length-grouped batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ltp.data.batching import TrainBatches, check_batch_size, evaluation_batches, matched_rows, steps_in_epoch
from ltp.data.sources import Splits
from ltp.errors import UserError

Batch = dict[str, torch.Tensor]


class Collator:
    """Pads a batch on the right, to its longest row.

    Args:
        pad_token_id: What `input_ids` are padded with; all other inputs are padded with 0.
        regression: Labels are float32 rather than int64.
    """

    def __init__(self, pad_token_id: int, *, regression: bool) -> None:
        self.pad_token_id = pad_token_id
        self.label_dtype = torch.float32 if regression else torch.int64

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate tokenised rows.

        Returns:
            `input_ids`, `attention_mask` (1: a real token) and, where the tokenizer makes them,
            `token_type_ids`, each int64 of shape (batch, longest); `labels` of shape (batch,).
        """
        longest = max(len(row["input_ids"]) for row in rows)
        batch: Batch = {}
        for name in (name for name in rows[0] if name != "label"):
            fill = self.pad_token_id if name == "input_ids" else 0
            padded = np.full((len(rows), longest), fill, dtype=np.int64)
            for index, row in enumerate(rows):
                padded[index, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=self.label_dtype)
        return batch


class GLUEDataModule(pl.LightningDataModule):
    """A task's batches for training and validation.

    The Trainer needs `use_distributed_sampler=False`: the batches are sharded here. Under any number of
    processes the optimiser steps see the same rows and every validation row is evaluated exactly once.
    A run that resumes from a checkpoint continues with the micro-batch after the last one processed.

    Args:
        splits: What `ltp.data.sources.load_splits` returned.
        tokenizer: A tokenizer with a padding token.
        batch_size: Rows of one optimiser step, over all processes and accumulated micro-batches.
        eval_batch_size: Rows of one validation batch of one process.
        accumulate: Micro-batches that a process takes for one optimiser step.
        max_length: Tokens at which a row is truncated, special ones included.
        seed: Decides the order of training rows, together with the epoch.
        num_workers: Worker processes of each data loader.

    Raises:
        UserError: A value that cannot work; the message names the key.
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
        self._collate = Collator(_pad_token_id(tokenizer), regression=self.task.is_regression)

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Names of the validation splits, in the order of the data loaders."""
        return tuple(self.splits.validation)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch; known before `setup`."""
        return steps_in_epoch(len(self.splits.train), self.batch_size, self._world_size * self.accumulate)

    def setup(self, stage: str | None = None) -> None:
        """Check the splits against the number of processes, and tokenise them in memory.

        Args:
            stage: Lightning's: only "fit" (or None) needs the training split.

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
        """This process's micro-batches; one that resumes starts where its checkpoint stopped."""
        encoded = self._encoded["train"]
        batches = TrainBatches(
            _lengths(encoded),
            self.batch_size,
            accumulate=self.accumulate,
            world_size=self._world_size,
            rank=self._rank,
            seed=self.seed,
        )
        self._train_batches = batches
        if self.trainer is not None:
            _resume(batches, self.trainer)
        return self._loader(encoded, batches)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """One loader for each of `validation_splits`, with this process's share of the rows."""
        loaders = []
        for name in self.validation_splits:
            encoded = self._encoded[name]
            batches = evaluation_batches(
                _lengths(encoded), self.eval_batch_size, world_size=self._world_size, rank=self._rank
            )
            loaders.append(self._loader(encoded, batches))
        return loaders

    def loss_weight(self, batch_idx: int, rows: int) -> float:
        """Weight of a training micro-batch's mean loss, so that the optimiser step's is a mean over its rows.

        Lightning averages over accumulated micro-batches and DDP over processes; in the smaller batch at the
        end of an epoch their numbers of rows differ.

        Args:
            batch_idx: Lightning's, of the epoch.
            rows: Rows of the micro-batch.

        Returns:
            `rows * micro_batches / rows of the optimiser step`.
        """
        if self._train_batches is None:
            raise RuntimeError("loss_weight is known once train_dataloader was called")
        return self._train_batches.loss_weight(batch_idx, rows)

    def calibration_batches(self, count: int) -> list[Batch]:
        """This process's share of a fixed sample of training rows, as long as those of the main validation split.

        Args:
            count: Rows of the sample, over all processes.
        """
        if count not in self._calibration_batches:
            encoded = self._encoded["train"]
            own = self._calibration_rows(count)[self._rank :: self._world_size].tolist()
            starts = range(0, len(own), self.eval_batch_size)
            self._calibration_batches[count] = [
                self._collate([encoded[row] for row in own[start : start + self.eval_batch_size]]) for start in starts
            ]
        return self._calibration_batches[count]

    def calibration_lengths(self, count: int) -> np.ndarray:
        """Tokens of each row of the sample of `calibration_batches`, (rows,), int; known after `setup`."""
        return self.train_lengths[self._calibration_rows(count)]

    def _calibration_rows(self, count: int) -> np.ndarray:
        return matched_rows(self.train_lengths, _lengths(self._encoded[self.validation_splits[0]]), count)

    @property
    def train_lengths(self) -> np.ndarray:
        """Tokens of each training row, special ones included: shape (rows,), int. Known after `setup`."""
        return _lengths(self._encoded["train"])

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _encode(self, name: str, split: datasets.Dataset) -> None:
        if name in self._encoded:
            return

        def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
            texts = (list(rows[column]) for column in self.task.text_columns)
            return dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))

        with _no_progress_bars():
            self._encoded[name] = split.map(
                encode,
                batched=True,
                remove_columns=list(self.task.text_columns),
                keep_in_memory=True,
                new_fingerprint=f"{name}-encoded",  # nothing is cached, so the tokenizer need not be hashed
            )

    def _loader(self, encoded: datasets.Dataset, batches: Any) -> DataLoader[Batch]:
        return DataLoader(
            encoded,  # has __getitem__ and __len__, and fetches a batch at once
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


def _resume(batches: TrainBatches, trainer: pl.Trainer) -> None:
    """Let the first pass over the batches start where the checkpoint that is being restored stopped."""
    fit_loop: Any = trainer.fit_loop
    epoch, done = fit_loop.epoch_progress.current.processed, 0
    if fit_loop.restarting:
        # `processed`: `completed` is one too few where the checkpoint was saved in a batch's last hook
        done = fit_loop.epoch_loop.batch_progress.current.processed
        if done >= len(batches):  # saved at the end of an epoch
            epoch, done = epoch + 1, 0
        # Lightning cannot see that the order is restored here, without a `state_dict` of the loader
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    batches.resume(epoch, done)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: int, max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < special + texts:
        raise UserError(f"task.max_length={max_length}: too short; {special} tokens are special.")
    if max_length > tokenizer.model_max_length:
        raise UserError(f"task.max_length={max_length}: the model reads at most {tokenizer.model_max_length} tokens.")


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.pad_token_id is None:
        raise UserError(f"The tokenizer {tokenizer.name_or_path!r} has no padding token; give it one.")
    return int(tokenizer.pad_token_id)


def _lengths(encoded: datasets.Dataset) -> np.ndarray:
    """Tokens of each row, special ones included: shape (rows,), int."""
    import pyarrow.compute as pc

    return pc.list_value_length(encoded.data["input_ids"]).to_numpy()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Tokenising takes a second for most tasks, and on every rank: no bars of it."""
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
