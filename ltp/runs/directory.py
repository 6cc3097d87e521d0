"""A run directory on disk: what is stored in it, and what starting a run again does.

::

    config.yaml        the resolved configuration and the parent
    checkpoints/       last.ckpt: all that a resumed run needs, and previous.ckpt, the one before
    metrics.jsonl      one line a logged step
    model/             Hugging Face format, with tokenizer
    predictions.parquet  what ``python -m ltp.evaluate`` left
    results.json       written last and atomically: where it stands, the run is finished
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
from ltp.runs.checkpoints import CONFIG_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE
from ltp.runs.plan import Run

CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"
METRICS_FILE = "metrics.jsonl"
_PARTIAL = ".partial"  # how the name of a file ends that is being written
_RUN_FILES = (CONFIG_FILE, CHECKPOINT_FOLDER, METRICS_FILE, MODEL_FOLDER, PREDICTIONS_FILE, RESULTS_FILE)

#: Keys that may differ when a run is started again: they decide neither what is learned nor from what.
_FREE_KEYS = (
    *("output_root", "overwrite", "restore", "recipe", "logger", "flops_budget"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.num_threads", "trainer.num_workers"),
    *("trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.detect_anomaly", "trainer.eval_batch_size"),
)


def is_finished(directory: Path) -> bool:
    """Whether a run directory holds results."""
    return (directory / RESULTS_FILE).is_file()


def read_results(directory: Path) -> dict[str, Any]:
    """A finished run's ``results.json``."""
    return json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))


def stored_config(run: Run) -> dict[str, Any]:
    """The resolved configuration as it is stored: plain containers, and the parent with its run's id."""
    parent_id = run.parent.results["run_id"] if run.parent is not None and run.parent.results is not None else None
    return {
        **dataclasses.asdict(run.settings),
        "method": run.method,
        "parent": {"name": run.parent_name, "run_id": parent_id},
    }


def check_same_settings(run: Run) -> None:
    """Check that a run directory was not written by another configuration.

    Raises:
        UserError: it was; the message shows the difference.
    """
    path = run.directory / CONFIG_FILE
    if not path.is_file() or run.settings.overwrite:
        return
    stored = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    wanted = _flat(stored_config(run))
    if run.missing is not None or wanted.get("parent.run_id") is None:
        # the parent was deleted (or never was a run): what the child learned from it still stands
        stored.pop("parent.run_id", None)
    elif stored.get("parent.run_id") == wanted["parent.run_id"]:
        stored.pop("parent.name", None)  # the same run, perhaps under another path
    # a parent brings its model, however the command names it
    free = (*_FREE_KEYS, "model") if run.parent is not None or run.missing is not None else _FREE_KEYS
    differing = [
        f"  {key}: {stored[key]} there, {wanted[key]} now"
        for key in sorted(stored.keys() & wanted.keys())
        if stored[key] != wanted[key] and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if differing:
        state = "a finished" if is_finished(run.directory) else "an unfinished"
        raise UserError(
            f"{run.directory} holds {state} run with another configuration:\n"
            + "\n".join(differing)
            + "\nStart it afresh with overwrite=true, or keep both with another output_root=…"
        )


def open_directory(run: Run) -> None:
    """Make the run directory ready for training: afresh with ``overwrite``, and without what a kill left half."""
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
    """Remove what a run wrote.

    Runs inside (``hard/``) stay: their stored parent no longer matches, which :func:`check_same_settings` reports.
    """
    for name in reversed(_RUN_FILES):  # results first: what is half removed must not look finished
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Finish a run: write ``results.json`` atomically, and remove the checkpoints that it no longer needs.

    The results get a ``run_id`` that tells this training from a later one.
    """
    content = {**results, "run_id": uuid.uuid4().hex[:12]}
    for path in (directory / MODEL_FOLDER).glob("*"):
        _flush(path)  # after a power cut there must be no results without their model
    write_atomically(directory / RESULTS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for name in (BEST_CHECKPOINT, PREVIOUS_CHECKPOINT):
        (directory / CHECKPOINT_FOLDER / name).unlink(missing_ok=True)


def metrics_size(directory: Path) -> int:
    """Bytes of ``metrics.jsonl`` so far, all of them on the disk."""
    path = directory / METRICS_FILE
    if not path.is_file():
        return 0
    _flush(path)
    return path.stat().st_size


def truncate_metrics(directory: Path, size: int | None) -> None:
    """Drop what a run logged after the checkpoint that it resumes from, and a line of which only a part was written.

    Args:
        directory: the run directory.
        size: bytes of ``metrics.jsonl`` when the checkpoint was saved; None keeps all whole lines.
    """
    path = directory / METRICS_FILE
    if not path.is_file():
        return
    kept = path.read_bytes()[:size]
    whole = kept.rfind(b"\n") + 1
    if whole:
        os.truncate(path, whole)
    else:
        path.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is either whole or absent, also when the machine stops."""
    with open_atomically(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def open_atomically(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when it is whole and on the disk.

    Args:
        path: where it will stand.
        keep: where to put what stood there; None replaces it.
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
    """Bring a file, or a folder's names, from the system's memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
