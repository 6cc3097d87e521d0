"""Fingerprints of what a run reads: its data and the checkpoint that it starts from. Content counts, names do not."""

import functools
import hashlib
import os
from pathlib import Path

from ltp.data.files import source_files
from ltp.data.tasks import Task
from ltp.runs.settings import TrainSettings

#: Files of a Hugging Face directory that decide what a model computes. Others are optimiser states, logs and cards.
_MODEL_FILES = (
    *("config.json", "*.safetensors", "pytorch_model*.bin", "*.index.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"),
)
_DIGITS = 16  # 64 bits


def data_fingerprints(settings: TrainSettings, task: Task) -> dict[str, str]:
    """Return the fingerprints of a run's local data files, by split.

    Returns:
        Nothing for the demo, for the hub's datasets, which are identified by name, and for files that are missing.

    Raises:
        UserError: several files claim to be one split.
    """
    files = source_files(task, settings.data_dir, settings.task.train_file, settings.task.validation_file)
    return {split: file_fingerprint(path) for split, path in files.items()}


def checkpoint_fingerprint(name_or_path: str | None) -> str | None:
    """Return the fingerprint of a Hugging Face directory: configuration, weights and tokenizer.

    Returns:
        None for a hub id, which is identified by name, and for None.
    """
    if name_or_path is None or not (folder := Path(name_or_path).expanduser()).is_dir():
        return None
    files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    lines = [f"{path.name} {file_fingerprint(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]


def file_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file's content: 16 hexadecimal digits of its SHA-256."""
    state = path.stat()
    return _digest(os.path.realpath(path), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1024)  # a sweep plans many runs that read the same files
def _digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
