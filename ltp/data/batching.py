"""Batch samplers: order of training rows, sharding over processes, resuming, and length-matched samples.

The order is a pure function of (seed, epoch). The number of processes and gradient accumulation determine only
how a batch is split, so runs on different hardware take the same optimiser steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ltp.errors import UserError

GROUP_BATCHES = (
    50  # batches sorted by length together: large enough to save padding, small enough to keep the order random
)


def check_batch_size(batch_size: int, world_size: int, accumulate: int) -> None:
    """Check that the batch of an optimiser step can be split evenly.

    Raises:
        UserError: `batch_size` is not a positive multiple of `world_size * accumulate`.
    """
    parts = world_size * accumulate
    if batch_size >= 1 and batch_size % parts == 0:
        return
    below = batch_size // parts * parts
    works = f"{below} or {below + parts}" if below > 0 else f"{parts}"
    raise UserError(
        f"batch_size={batch_size} is the batch of an optimiser step and must be a multiple of trainer.devices"
        f" ({world_size}) x trainer.accumulate_grad_batches ({accumulate}) = {parts}; {works} would work."
    )


def steps_in_epoch(rows: int, batch_size: int, parts: int) -> int:
    """Count the optimiser steps in one epoch of `rows` rows.

    The last batch may be smaller. It is dropped if it has fewer rows than `parts` (world size times accumulation).
    """
    full, rest = divmod(rows, batch_size)
    return full + (rest >= parts)


def global_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Build one epoch's batches: rows of similar length together, batches in random order.

    Args:
        lengths: Tokens in each row, int, shape (rows,).
        batch_size: Rows per optimiser step, over all processes.
        seed: Determines the order, together with `epoch`.
        epoch: Counted from 0.

    Returns:
        Row indices of each batch, int64; each row occurs once. A smaller batch, if any, comes last.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    full = len(order) // batch_size * batch_size
    order, rest = order[:full], order[full:]
    group = batch_size * GROUP_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, full, group):
        rows = order[start : start + group]
        rows = rows[np.argsort(-lengths[rows], kind="stable")]
        batches += np.split(rows, len(rows) // batch_size)
    batches = [batches[index] for index in rng.permutation(len(batches))]
    return [*batches, rest] if len(rest) else batches


class TrainBatches(Sampler[list[int]]):
    """Batch sampler of one process: yields the micro-batches of an epoch in order.

    An optimiser step consists of `accumulate` micro-batches on each of `world_size` processes. The step's rows are
    split as evenly as possible, and each micro-batch gets rows from the step's whole range of lengths.

    Args:
        lengths: Tokens in each row, shape (rows,).
        batch_size: Rows per optimiser step; a multiple of `world_size * accumulate`.
        accumulate: Micro-batches per process and optimiser step.
        world_size: Number of processes.
        rank: Rank of this process.
        seed: Determines the order, together with the epoch.
        label_counts: Labels in each row, over which the loss is a mean; None for one each.

    Raises:
        UserError: `batch_size` is not a positive multiple of `world_size * accumulate`.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        accumulate: int = 1,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        label_counts: Sequence[int] | None = None,
    ) -> None:
        check_batch_size(batch_size, world_size, accumulate)
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.parts = world_size * accumulate
        self.steps = steps_in_epoch(len(self.lengths), batch_size, self.parts)
        self.epoch = 0
        self.label_counts = None if label_counts is None else np.asarray(label_counts)
        self._labels_in_steps: list[int] = []  # of the epoch being iterated
        self._resume: tuple[int, int] | None = None  # (epoch, micro-batches of it already processed)
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Skip the first `done` micro-batches in the next iteration, provided that it is over `epoch`."""
        self.epoch = epoch
        self._resume = (epoch, done)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        resume, self._resume = self._resume, None
        start = resume[1] if resume is not None and resume[0] == self.epoch else 0
        batches = global_batches(self.lengths, self.batch_size, self.seed, self.epoch)
        if self.label_counts is not None:
            self._labels_in_steps = [int(self.label_counts[batch].sum()) for batch in batches]
        for index in range(start, len(self)):
            step, micro_batch = divmod(index, self.accumulate)
            yield batches[step][micro_batch * self.world_size + self.rank :: self.parts].tolist()

    def loss_weight(self, batch_idx: int, rows: int) -> float:
        """Compute the weight of a micro-batch's mean loss that makes an average over micro-batches a mean over rows.

        Args:
            batch_idx: Index of the micro-batch in the epoch.
            rows: Number of rows in the micro-batch.

        Returns:
            The weight; 1.0 except in the smaller batch at the end of an epoch.
        """
        step = batch_idx // self.accumulate
        global_rows = min(self.batch_size, len(self.lengths) - step * self.batch_size)
        return rows * self.parts / global_rows

    def label_weight(self, batch_idx: int, labels: int) -> float:
        """Compute the weight that makes an average over micro-batches a mean over the labels of the optimiser step.

        Args:
            batch_idx: Index of the micro-batch in the epoch.
            labels: Number of labels in the micro-batch.
        """
        return labels * self.parts / max(self._labels_in_steps[batch_idx // self.accumulate], 1)


def evaluation_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, *, world_size: int = 1, rank: int = 0
) -> list[list[int]]:
    """Build the batches that one process evaluates, the longest rows first.

    No row is repeated to fill a shard: over all ranks, each row occurs exactly once.

    Returns:
        Row indices of each batch.
    """
    shard = np.argsort(-np.asarray(lengths), kind="stable")[rank::world_size]
    return [shard[start : start + batch_size].tolist() for start in range(0, len(shard), batch_size)]


def matched_rows(lengths: np.ndarray, target_lengths: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Sample rows whose length distribution matches that of other examples.

    If a method's cost depends on the input length, a budget met on short training examples is exceeded on longer
    evaluation examples (SST-2 trains on phrases and evaluates on sentences). The sample therefore follows the lengths
    of the examples that the budget applies to. Only their lengths are used.

    Args:
        lengths: Tokens in each candidate row, int, shape (R,).
        target_lengths: Tokens in each example that the budget applies to, int, shape (V,).
        count: Rows to sample; all R rows if there are fewer.
        seed: Determines the choice among rows of equal length.

    Returns:
        Indices of the sampled rows, int64, shape (min(count, R),), without duplicates, ascending by length.
    """
    count = min(count, len(lengths))
    quantiles = np.sort(target_lengths)[((np.arange(count) + 0.5) * len(target_lengths) / count).astype(int)]
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    available = shuffled[np.argsort(lengths[shuffled], kind="stable")]  # by length, equal lengths in random order
    free, free_lengths = available.tolist(), lengths[available].tolist()
    sampled = []
    for length in quantiles[::-1].tolist():  # the longest first: they cost most and are rarest
        right = bisect_left(free_lengths, length)
        left = right - 1
        nearer_left = right == len(free) or (left >= 0 and length - free_lengths[left] < free_lengths[right] - length)
        nearest = left if nearer_left else right
        sampled.append(free.pop(nearest))
        free_lengths.pop(nearest)
    rows = np.array(sampled, dtype=np.int64)
    return rows[np.argsort(lengths[rows], kind="stable")]
