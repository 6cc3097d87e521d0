"""Interrupted training: handle signals and errors so that the saved checkpoint can be resumed exactly."""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from ltp.errors import RunError

log = logging.getLogger("ltp")


class StoppedError(Exception):
    """A signal stopped the training, before the same batch in every process. ``number`` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class LastCheckpoint(ModelCheckpoint):
    """Save ``last.ckpt`` after every evaluation, and when the training stops early.

    A checkpoint saved in the middle of an update or an evaluation cannot be resumed exactly, and processes that save
    at different batches deadlock. Therefore signals are deferred to the start of the next batch, where all processes
    agree on them, and an error saves a checkpoint only between two updates.

    SIGINT and SIGTERM raise :class:`StoppedError`. A second SIGINT is not deferred. SIGUSR1 saves, and the training
    goes on; under SLURM it keeps Lightning's handler, which saves and requeues the job.

    Args:
        arguments: arguments of ModelCheckpoint.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(save_on_exception=True, **arguments)
        self._between_updates = False
        self._pending: set[int] = set()  # deferred signals
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers. Lightning restores the original ones at its end."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        self._handlers = {signal.SIGINT: _raise_stopped, signal.SIGTERM: _raise_stopped}
        requeue = signal.getsignal(signal.SIGUSR1)
        self._handlers[signal.SIGUSR1] = requeue if callable(requeue) else lambda number, frame: self._save_now(trainer)
        for number in self._handlers:
            signal.signal(number, self._defer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Handle deferred signals: the training state is consistent here."""
        self._between_updates = True
        self._handle_pending(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Mark the state as inconsistent until the next batch: the update, its log line and an evaluation follow."""
        self._between_updates = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._between_updates = True
        self._handle_pending(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save if the state is consistent and all processes stop; saving needs every process."""
        in_all_processes = trainer.world_size == 1 or isinstance(exception, StoppedError | RunError)
        if self._between_updates and in_all_processes:
            super().on_exception(trainer, pl_module, exception)

    def _save_now(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        signal.signal(signal.SIGUSR1, self._defer)
        if trainer.is_global_zero:
            log.info("saved at step %d", trainer.global_step)

    def _defer(self, number: int, frame: Any) -> None:
        """Record a signal for the next batch; a second SIGINT acts at once."""
        if number == signal.SIGINT and number in self._pending:
            signal.default_int_handler(number, frame)
        self._pending.add(number)

    def _handle_pending(self, trainer: pl.Trainer) -> None:
        """Agree with all processes on the highest deferred signal, and call its handler."""
        number = max(self._pending, default=0)
        if trainer.world_size > 1:
            highest = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
            number = int(highest)
        if number:
            self._pending.discard(number)
            signal.signal(number, signal.SIG_IGN)  # other processes may receive it later: do not handle it twice
            self._handlers[number](number, None)


def _raise_stopped(number: int, frame: Any) -> None:
    raise StoppedError(number)
