"""Checkpoints of an interrupted run: written atomically, with one previous version; damaged files are renamed.

Every checkpoint stores the size of ``metrics.jsonl``, so that a resumed run logs no step twice.
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
from ltp.runs.checkpoints import CHECKPOINT_FOLDER, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from ltp.runs.directory import metrics_size, open_atomically

log = logging.getLogger(__name__)

_METRICS_SIZE = "metrics_size"


@dataclass(frozen=True)
class SavedCheckpoint:
    """An undamaged checkpoint.

    Attributes:
        path: the checkpoint file.
        step: number of optimiser steps done.
        metrics_size: size of ``metrics.jsonl`` in bytes when it was saved; None for files of earlier versions.
    """

    path: Path
    step: int
    metrics_size: int | None


def find_checkpoint(directory: Path, *, set_aside: bool) -> SavedCheckpoint | None:
    """Find the newest undamaged checkpoint of an unfinished run.

    All processes of a run may call this at the same time. They find the same checkpoint, before and after the main
    process renames damaged files.

    Args:
        directory: the run directory.
        set_aside: rename damaged files to ``<name>.damaged`` with a warning; for the main process only.

    Returns:
        The checkpoint to resume from; None for a fresh start.

    Raises:
        OSError: a file cannot be opened; it is not treated as damaged.
    """
    damaged = []
    checkpoint = None
    for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = directory / CHECKPOINT_FOLDER / name
        try:
            checkpoint = _read(path)
        except FileNotFoundError:
            continue
        if checkpoint is not None:
            break
        damaged.append(path)
    if set_aside:
        action = "starting from the beginning"
        if checkpoint is not None:
            action = f"going on from {checkpoint.path.name} (step {checkpoint.step})"
        for path in damaged:
            renamed = path.with_name(f"{path.name}.damaged")
            os.replace(path, renamed)
            log.warning("%s is damaged: kept as %s, %s", path, renamed.name, action)
    return checkpoint


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is undamaged; reads the whole file."""
    return _read(path) is not None


def _read(path: Path) -> SavedCheckpoint | None:
    """Read a checkpoint's step and metrics size; None if it is damaged."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:  # torch writes checksums, but does not verify them
                    return None
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            return SavedCheckpoint(path, int(content["global_step"]), content.get(_METRICS_SIZE))
        except Exception:  # damaged files raise many types of errors
            return None


class RunCheckpointIO(TorchCheckpointIO):
    """Write and read the checkpoints of one run.

    Lightning's default copies the file from the system's temporary folder, so a kill can leave a partial file.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.last = directory / CHECKPOINT_FOLDER / LAST_CHECKPOINT
        self._last_step: int | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically; keep the previous ``last.ckpt`` as ``previous.ckpt``."""
        path = Path(path)
        if path.name.startswith("hpc_ckpt_"):
            # Lightning's SLURM requeue saves another file, which every later start would prefer
            path = self.last
        keep = None
        if path.name == LAST_CHECKPOINT:
            checkpoint[_METRICS_SIZE] = metrics_size(self.directory)
            if (
                self._last_step != checkpoint["global_step"]
            ):  # saved again at the same step: previous.ckpt must stay an earlier one
                keep = path.with_name(PREVIOUS_CHECKPOINT)
            self._last_step = checkpoint["global_step"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path, keep=keep) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, and update its paths in case the run directory was moved."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        folder = os.path.realpath(Path(path).parent)
        for state in checkpoint.get("callbacks", {}).values():
            if "best_model_path" in state:
                _replace_folder(state, folder)
        return checkpoint


def _replace_folder(state: dict[str, Any], folder: str) -> None:
    """Replace the folder of all paths in a ModelCheckpoint's state."""

    def replaced(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    state["dirpath"] = folder
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = replaced(state[key])
    state["best_k_models"] = {replaced(path): score for path, score in state["best_k_models"].items()}


class SameCheckpointCheck(Callback):
    """Check that all processes of a run resume from the same step.

    Each process finds its checkpoint separately, and a shared folder may show an older file on another machine.

    Args:
        saved: the checkpoint that this process resumes from; None for a fresh start.
    """

    def __init__(self, saved: SavedCheckpoint | None) -> None:
        self.step = saved.step if saved is not None else 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compare the step with the main process.

        Raises:
            RunError: this process would resume from another step.
        """
        step = trainer.strategy.broadcast(self.step)
        if step != self.step:
            raise RunError(
                f"process {trainer.global_rank} would resume from step {self.step}, the main process from step {step}: "
                "the folder of checkpoints looks different there. Start the command again."
            )
