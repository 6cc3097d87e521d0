"""Files of a run directory: atomic writes, and checks when a run is started again.

::

    config.yaml          resolved configuration and the parent run
    checkpoints/         last.ckpt: the full training state; previous.ckpt: the one before it
    metrics.jsonl        one line per logged step
    model/               Hugging Face format, with tokenizer
    predictions.parquet  written by ``python -m ltp.evaluate``
    results.json         written last and atomically: its presence marks a finished run
"""

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ltp.errors import UserError
from ltp.runs.checkpoints import CONFIG_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE, run_config
from ltp.runs.plan import Run

CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"
METRICS_FILE = "metrics.jsonl"
_PARTIAL = ".partial"  # suffix of files that are being written
_RUN_FILES = (CONFIG_FILE, CHECKPOINT_FOLDER, METRICS_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE)

#: Keys that may differ when a run is started again: they affect neither the training nor its data.
_FREE_KEYS = (
    *("output_root", "overwrite", "restore", "recipe", "logger", "flops_budget"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.num_threads", "trainer.num_workers"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.detect_anomaly", "trainer.eval_batch_size"),
)


def is_finished(directory: Path) -> bool:
    """Whether a run directory contains results."""
    return (directory / RESULTS_FILE).is_file()


def stored_config(run: Run) -> dict[str, Any]:
    """Return the content of ``config.yaml``: the resolved configuration, the method and the parent's name and id."""
    parent_id = run.parent.results["run_id"] if run.parent is not None and run.parent.results is not None else None
    return {
        **dataclasses.asdict(run.settings),
        "method": run.method,
        "parent": {"name": run.parent_name, "run_id": parent_id},
    }


def check_same_settings(run: Run) -> None:
    """Check that a run directory was not written with another configuration.

    Raises:
        UserError: the configurations differ; the message lists the differences.
    """
    path = run.directory / CONFIG_FILE
    if not path.is_file() or run.settings.overwrite:
        return
    content = run_config(run.directory)
    if not content:  # nothing could be compared
        raise UserError(
            f"{path} is damaged: it cannot be compared with this configuration. Restore it from a copy, or start the "
            "run afresh with overwrite=true"
        )
    stored = flatten(content)
    current = flatten(stored_config(run))
    if run.missing is not None or current.get("parent.run_id") is None:
        # the parent was deleted or is not a run: the child's training is still valid
        stored.pop("parent.run_id", None)
    elif stored.get("parent.run_id") == current["parent.run_id"]:
        stored.pop("parent.name", None)  # the same run, possibly under another path
    # the parent determines the model, so model keys may differ
    free = (*_FREE_KEYS, "model") if run.parent is not None or run.missing is not None else _FREE_KEYS
    differing = [
        f"  {key}: {stored[key]} there, {current[key]} now"
        for key in sorted(stored.keys() & current.keys())
        if stored[key] != current[key] and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if differing:
        state = "a finished" if is_finished(run.directory) else "an unfinished"
        raise UserError(
            f"{run.directory} holds {state} run with another configuration:\n"
            + "\n".join(differing)
            + "\nStart it afresh with overwrite=true, or keep both with another output_root=…"
        )


def open_directory(run: Run) -> None:
    """Prepare the run directory for training: clear it with ``overwrite``, and remove partial files of killed runs."""
    if run.settings.overwrite:
        remove_run_files(run.directory)
    for folder in (run.directory, run.directory / CHECKPOINT_FOLDER):
        for partial in folder.glob(f".*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
    run.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(
        run.directory / CONFIG_FILE, yaml.safe_dump(stored_config(run), sort_keys=False, allow_unicode=True)
    )


def remove_run_files(directory: Path) -> None:
    """Remove the files of a run.

    Nested runs (``hard/``) are kept. Their stored parent no longer matches, which :func:`check_same_settings` reports.
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
    write_atomically(directory / RESULTS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
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


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; an empty mapping stays a value."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
