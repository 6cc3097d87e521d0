"""A training that is stopped, by a signal or by an error: what it saves, and when."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from ltp.errors import RunError


class StoppedError(Exception):
    """A signal stopped the training, before the same batch in every process."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: saved after every evaluation, and where a training stops early.

    What was saved in the middle of an update or an evaluation cannot be resumed exactly, and processes that save
    at different batches wait for each other for ever. So signals wait for the next batch, before which all
    processes agree on them; and an error saves only what lies between two updates.

    SIGINT and SIGTERM raise :class:`StoppedError`. A second SIGINT does not wait. SIGUSR1 does what it did before:
    under SLURM, Lightning saves and has the job queued again.

    Args:
        arguments: ModelCheckpoint's.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(save_on_exception=True, **arguments)
        self._between_updates = False
        self._waiting: set[int] = set()
        self._handlers: dict[int, Callable[[int, Any], Any]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which will put back what was there before it."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        self._handlers = {signal.SIGINT: _stop, signal.SIGTERM: _stop}
        requeue = signal.getsignal(signal.SIGUSR1)
        if callable(requeue):
            self._handlers[signal.SIGUSR1] = requeue
        for number in self._handlers:
            signal.signal(number, self._note)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Here the state is whole: act on the signals."""
        self._between_updates = True
        self._act(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """From here to the next batch it is not: the update, its log line, an evaluation."""
        self._between_updates = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._between_updates = True
        self._act(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, unless the state is not whole, or other processes go on: they would not come to save with this one."""
        everywhere = trainer.world_size == 1 or isinstance(exception, StoppedError | RunError)
        if self._between_updates and everywhere:
            super().on_exception(trainer, pl_module, exception)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in self._waiting:
            signal.default_int_handler(number, frame)
        self._waiting.add(number)

    def _act(self, trainer: pl.Trainer) -> None:
        number = max(self._waiting, default=0)
        if trainer.world_size > 1:
            agreed = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
            number = int(agreed)
        if number:
            self._waiting.discard(number)
            signal.signal(number, signal.SIG_IGN)  # it may reach other processes later, and must not count twice
            self._handlers[number](number, None)


def _stop(number: int, frame: Any) -> None:
    raise StoppedError(number)
