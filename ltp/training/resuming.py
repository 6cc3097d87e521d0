"""What an interrupted run goes on from: checkpoints written whole, the one before kept, damaged ones set aside.

Every checkpoint also knows how long ``metrics.jsonl`` was, so that a resumed run writes no line twice.
"""

import logging
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ltp.errors import RunError
from ltp.runs.directory import CHECKPOINT_FOLDER, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, metrics_size, open_atomically

log = logging.getLogger(__name__)

_METRICS_SIZE = "metrics_size"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is whole.

    Attributes:
        path: its file.
        step: optimiser steps done.
        metrics_size: bytes of ``metrics.jsonl`` when it was saved; None where an earlier version wrote it.
    """

    path: Path
    step: int
    metrics_size: int | None


def find_checkpoint(directory: Path, *, set_aside: bool) -> SavedCheckpoint | None:
    """The newest whole checkpoint of an unfinished run.

    All processes of a run may look at the same time: they find the same, whether or not the one that sets
    damaged files aside has come to it yet.

    Args:
        directory: the run directory.
        set_aside: rename damaged files to ``<name>.damaged``, and warn of each; for one process only.

    Returns:
        What to resume from, or None for a fresh start.

    Raises:
        OSError: a file cannot be opened, which does not make it a damaged one.
    """
    damaged = []
    found = None
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = directory / CHECKPOINT_FOLDER / name
        try:
            found = _read(path)
        except FileNotFoundError:
            continue
        if found is not None:
            break
        damaged.append(path)
    if set_aside:
        instead = f"going on from {found.path.name} (step {found.step})" if found else "starting from the beginning"
        for path in damaged:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            log.warning("%s is damaged: kept as %s, %s", path, aside.name, instead)
    return found


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read to its last byte."""
    return _read(path) is not None


def _read(path: Path) -> SavedCheckpoint | None:
    """A checkpoint's facts; None where it is damaged."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:  # torch writes a checksum a record, but never looks at it
                    return None
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            return SavedCheckpoint(path, int(content["global_step"]), content.get(_METRICS_SIZE))
        except Exception:  # which one depends on the bytes that are wrong
            return None


class RunCheckpointIO(TorchCheckpointIO):
    """Writes and reads the checkpoints of one run.

    Lightning's own writes into the system's temporary folder and copies from there, so that a kill can leave half
    a file.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.last = directory / CHECKPOINT_FOLDER / LAST_CHECKPOINT
        self._last_step: int | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint that is either whole or absent; before ``last.ckpt`` is replaced, it is kept."""
        path = Path(path)
        if path.name.startswith("hpc_ckpt_"):
            # Lightning's requeue under SLURM saves apart, and the next start would prefer that file for ever
            path = self.last
        keep = None
        if path.name == LAST_CHECKPOINT:
            checkpoint[_METRICS_SIZE] = metrics_size(self.directory)
            if self._last_step != checkpoint["global_step"]:  # else there would be no earlier one
                keep = path.with_name(PREVIOUS_CHECKPOINT)
            self._last_step = checkpoint["global_step"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, keep=keep) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, place: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; the files that it names lie where it lies, also if the run directory was moved."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        folder = os.path.realpath(Path(path).parent)
        for state in checkpoint.get("callbacks", {}).values():
            if "best_model_path" in state:
                _move(state, folder)
        return checkpoint


def _move(state: dict[str, Any], folder: str) -> None:
    """Let a ModelCheckpoint's state name files in ``folder``."""

    def moved(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    state["dirpath"] = folder
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}


class SameCheckpointCheck(Callback):
    """Checks that all processes of a run resume from the same step, as soon as they know each other.

    Each has looked for itself: on several machines a shared folder may show some of them an older checkpoint.

    Args:
        saved: what this process resumes from.
    """

    def __init__(self, saved: SavedCheckpoint | None) -> None:
        self.step = saved.step if saved is not None else 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare with the main process.

        Raises:
            RunError: this process found another checkpoint.
        """
        step = trainer.strategy.broadcast(self.step)
        if step != self.step:
            raise RunError(
                f"process {trainer.global_rank} would resume from step {self.step}, the main process from step {step}: "
                "the folder of checkpoints looks different there. Start the command again."
            )
