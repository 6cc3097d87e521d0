"""Which rows make up which batch: the order of training, its shards, and what resuming needs.

The order is a pure function of (seed, epoch). The number of processes and gradient accumulation only decide
how a batch is split, so that runs on other machines see the same optimiser steps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ltp.errors import UserError

GROUP_BATCHES = 50  # batches sorted by length together: enough to save padding, few enough to stay random


def check_batch_size(batch_size: int, world_size: int, accumulate: int) -> None:
    """Stop where the batch of an optimiser step cannot be split evenly.

    Raises:
        UserError: `batch_size` is no positive multiple of `world_size * accumulate`.
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
    """Optimiser steps in one epoch of `rows` rows.

    The last batch may be smaller, but it is dropped where it has fewer rows than `parts`: world size times
    accumulation.
    """
    full, rest = divmod(rows, batch_size)
    return full + (rest >= parts)


def global_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One epoch's batches, rows of like length together, in random order.

    Args:
        lengths: Tokens of each row, shape (rows,).
        batch_size: Rows of one optimiser step, over all processes.
        seed: Together with `epoch`, decides the order.
        epoch: Counted from 0.

    Returns:
        Row numbers batch by batch, each row once. A smaller batch, if there is one, comes last.
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
    """Batch sampler of one process: its micro-batches of an epoch, in order.

    Optimiser step s consists of `accumulate` micro-batches on each of `world_size` processes. They share the
    step's rows as evenly as possible, each with rows of all its lengths.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of one optimiser step; a multiple of `world_size * accumulate`.
        accumulate: Micro-batches that a process takes for one optimiser step.
        world_size: Number of processes.
        rank: This process.
        seed: Decides the order, together with the epoch.
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
        self._resume: tuple[int, int] | None = None  # (epoch, micro-batches of it done already)
        self.sampler = self  # Lightning calls `batch_sampler.sampler.set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.epoch = epoch

    def resume(self, epoch: int, done: int) -> None:
        """Let the next pass, if it is through `epoch`, leave out the first `done` micro-batches."""
        self.epoch = epoch
        self._resume = (epoch, done)

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        resume, self._resume = self._resume, None
        start = resume[1] if resume is not None and resume[0] == self.epoch else 0
        batches = global_batches(self.lengths, self.batch_size, self.seed, self.epoch)
        for index in range(start, len(self)):
            step, apply = divmod(index, self.accumulate)
            yield batches[step][apply * self.world_size + self.rank :: self.parts].tolist()

    def loss_weight(self, batch_idx: int, rows: int) -> float:
        """Weight of a micro-batch's mean loss, such that averages over micro-batches are means over rows.

        Args:
            batch_idx: Position of the micro-batch in the epoch.
            rows: Its number of rows.

        Returns:
            1.0, except in the smaller batch at the end of an epoch.
        """
        step = batch_idx // self.accumulate
        global_rows = min(self.batch_size, len(self.lengths) - step * self.batch_size)
        return rows * self.parts / global_rows


def evaluation_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, *, world_size: int = 1, rank: int = 0
) -> list[list[int]]:
    """The batches that one process evaluates: sorted by length, and no row is repeated to fill a shard.

    Over all ranks each row comes exactly once.
    """
    shard = np.argsort(-np.asarray(lengths), kind="stable")[rank::world_size]
    return [shard[start : start + batch_size].tolist() for start in range(0, len(shard), batch_size)]


def matched_rows(lengths: np.ndarray, wanted: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows whose lengths are distributed as wanted.

    Where a method's cost depends on the length of the input, a budget met on training examples is missed on longer
    ones (SST-2 trains on phrases and is evaluated on sentences). So training examples are chosen by the lengths of
    those that the budget is for; nothing else of the latter is read.

    Args:
        lengths: tokens of each row that may be chosen, (R,).
        wanted: tokens of each example that the budget is for, (V,).
        count: how many rows to choose; all where there are no more.
        seed: of the choice among rows of equal length.

    Returns:
        Indices of the chosen rows, (min(count, R),) int64, ascending by length; none twice.
    """
    count = min(count, len(lengths))
    quantiles = np.sort(wanted)[((np.arange(count) + 0.5) * len(wanted) / count).astype(int)]
    shuffled = np.random.default_rng(seed).permutation(len(lengths))
    free = shuffled[np.argsort(lengths[shuffled], kind="stable")].tolist()  # by length, at random within one
    free_lengths = [int(lengths[row]) for row in free]
    chosen = []
    for length in quantiles[::-1].tolist():  # the longest first: they cost most, and are rarest
        right = bisect_left(free_lengths, length)
        left = right - 1
        nearer_left = right == len(free) or (left >= 0 and length - free_lengths[left] < free_lengths[right] - length)
        place = left if nearer_left else right
        chosen.append(free.pop(place))
        free_lengths.pop(place)
    rows = np.array(chosen, dtype=np.int64)
    return rows[np.argsort(lengths[rows], kind="stable")]
