"""The plan of a command: the runs that lead to the one that is asked for, told before anything is trained."""

import math

from ltp.errors import format_number
from ltp.runs.checkpoints import has_checkpoint, is_finished
from ltp.runs.identity import Run
from ltp.runs.settings import TrainerSettings, TrainSettings


def describe_chain(run: Run, rows: int, *, at_least: bool = False) -> str:
    """Describe what a command trains: a run and the parents that lead to it, with their lengths and directories.

    Args:
        run: the run.
        rows: number of training examples.
        at_least: whether they may be more rows of the model, windows that are not counted yet.
    """
    from ltp.data.batching import steps_in_epoch

    lines = ["plan:"]
    oldest = run.chain[0]
    if oldest.parent is not None:
        lines.append(f"  from      {oldest.parent.source}")
    elif oldest.settings.model.name_or_path is not None:
        lines.append(f"  from      {oldest.settings.model.name_or_path}")
    for one in run.chain:
        settings = one.settings
        assert settings.lr is not None and settings.epochs is not None and settings.batch_size is not None
        parts = settings.trainer.accumulate_grad_batches  # and of one process
        steps = planned_steps(settings, limited(steps_in_epoch(rows, settings.batch_size, parts), settings.trainer))
        values = (
            f"lr {format_number(settings.lr)}, {format_number(settings.epochs)} epochs, "
            f"{'at least ' if at_least else ''}{steps:,} steps of {settings.batch_size} examples"
        )
        lines += [f"  {one.stage:<8}  {_state(one)}: {values}", f"            {one.directory}"]
    return "\n".join(lines)


def limited(steps_per_epoch: int, trainer: TrainerSettings) -> int:
    """Return the optimiser steps of an epoch that ``trainer.limit_train_batches`` leaves."""
    batches, limit = steps_per_epoch * trainer.accumulate_grad_batches, trainer.limit_train_batches
    kept = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    return math.ceil(kept / trainer.accumulate_grad_batches)


def planned_steps(settings: TrainSettings, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of a training."""
    assert settings.epochs is not None
    steps = math.ceil(settings.epochs * steps_per_epoch)
    limit = settings.trainer.max_steps
    return min(steps, limit) if limit >= 0 else steps


def _state(run: Run) -> str:
    """Return what starting a run does."""
    if run.settings.overwrite:
        return "to train afresh"
    if is_finished(run.directory):
        return "finished"
    return "to resume" if has_checkpoint(run.directory) else "to train"
