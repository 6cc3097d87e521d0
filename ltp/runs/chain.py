"""The plan of a command: the runs that lead to the one that is asked for, printed before anything is trained."""

import math

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltp.errors import format_number
from ltp.runs.checkpoints import is_finished
from ltp.runs.directory import has_checkpoint
from ltp.runs.identity import Run
from ltp.runs.settings import TrainSettings


def print_chain(run: Run, rows: int) -> None:
    """Print what a command trains: a run and the parents that lead to it, with their lengths.

    Args:
        run: the run.
        rows: number of training examples.
    """
    from ltp.data.batching import steps_in_epoch

    table = Table(box=box.SIMPLE_HEAD, title="plan", title_justify="left", pad_edge=False)
    for name in ("stage", "lr", "epochs", "batch", "steps", "state"):
        table.add_column(name, justify="left" if name in ("stage", "state") else "right")
    table.add_column("run directory", overflow="fold")
    oldest = run.chain[0]
    if oldest.parent is not None:
        table.add_row("restored", "", "", "", "", "finished", escape(oldest.parent.source))
    for one in run.chain:
        settings = one.settings
        assert settings.lr is not None and settings.epochs is not None and settings.batch_size is not None
        row = (format_number(settings.lr), format_number(settings.epochs), str(settings.batch_size))
        parts = settings.trainer.accumulate_grad_batches  # and of one process
        steps = planned_steps(settings, steps_in_epoch(rows, settings.batch_size, parts))
        table.add_row(one.stage, *row, f"{steps:,}", _state(one), escape(str(one.directory)))
    Console().print(table)


def planned_steps(settings: TrainSettings, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of a training."""
    assert settings.epochs is not None
    steps = math.ceil(settings.epochs * steps_per_epoch)
    limit = settings.trainer.max_steps
    return min(steps, limit) if limit >= 0 else steps


def _state(run: Run) -> str:
    """Return what starting a run does."""
    if run.settings.overwrite:
        return "afresh"
    if is_finished(run.directory):
        return "finished"
    return "resumes" if has_checkpoint(run.directory) else "new"
