"""Files of a run directory, written atomically.

::

    config.yaml          resolved configuration and the parent run
    checkpoints/         last.ckpt: the full training state; previous.ckpt: the one before it
    metrics.jsonl        one line per logged step
    model/               Hugging Face format, with tokenizer
    predictions.parquet  written by ``python -m ltp.evaluate``
    results.json         written last and atomically: its presence marks a finished run
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ltp.runs.checkpoints import (
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FILE,
    PREVIOUS_CHECKPOINT,
)
from ltp.runs.identity import Run, stored_config
from ltp.runs.results import RESULTS_FILE
from ltp.runs.started import started_by

BEST_CHECKPOINT = "best.ckpt"
_PARTIAL = ".partial"  # suffix of files that are being written
_RUN_FILES = (CONFIG_FILE, CHECKPOINT_FOLDER, METRICS_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE)


def open_directory(run: Run) -> None:
    """Prepare the run directory for training: clear it with ``overwrite``, and remove partial files of killed runs."""
    if run.settings.overwrite:
        remove_run_files(run.directory)
    for folder in (run.directory, run.directory / CHECKPOINT_FOLDER):
        for partial in folder.glob(f".*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
    run.directory.mkdir(parents=True, exist_ok=True)
    config = {**stored_config(run), **started_by()}
    write_atomically(run.directory / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def remove_run_files(directory: Path) -> None:
    """Remove the files of a run.

    Nested runs (``hard/``) are kept. Their stored parent no longer matches, which
    :func:`ltp.runs.identity.check_identity` reports.
    """
    for name in reversed(_RUN_FILES):  # results first, so that a partly removed run is not taken for a finished one
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Finish a run: write ``results.json`` atomically, and remove the checkpoints that are no longer needed.

    Adds a random ``run_id`` to the results, which distinguishes repeated trainings in the same directory.
    """
    content = {**results, "run_id": uuid.uuid4().hex[:12]}
    for path in (directory / MODEL_FOLDER).glob("*"):
        _flush(path)  # results must not survive a power failure without their model
    write_atomically(
        directory / RESULTS_FILE, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    for name in (BEST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        (directory / CHECKPOINT_FOLDER / name).unlink(missing_ok=True)


def metrics_size(directory: Path) -> int:
    """Flush ``metrics.jsonl`` to disk and return its size in bytes; 0 if there is none."""
    path = directory / METRICS_FILE
    if not path.is_file():
        return 0
    _flush(path)
    return path.stat().st_size


def truncate_metrics(directory: Path, size: int | None) -> None:
    """Truncate ``metrics.jsonl`` to the lines that were complete when a checkpoint was saved.

    Args:
        directory: the run directory.
        size: size of the file in bytes when the checkpoint was saved; None keeps all complete lines.
    """
    path = directory / METRICS_FILE
    if not path.is_file():
        return
    if length := path.read_bytes()[:size].rfind(b"\n") + 1:
        os.truncate(path, length)
    else:
        path.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: it is complete or unchanged, even after a power failure."""
    with open_atomically(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def open_atomically(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, and move it to ``path`` once it is complete and flushed to disk.

    Args:
        path: the final path.
        keep: path to move the previous file to; None replaces it.

    Yields:
        The temporary file, opened for binary writing. If the block fails, it is removed and ``path`` is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
