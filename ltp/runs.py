"""A run directory on disk: what is stored in it, and what starting a run again does.

::

    config.yaml        the resolved configuration and the parent
    checkpoints/       last.ckpt: all that a resumed run needs
    metrics.jsonl      one line a logged step
    model/             Hugging Face format, with tokenizer
    results.json       written last and atomically: where it stands, the run is finished
"""

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import yaml

from ltp.checkpoints import CONFIG_FILE, MODEL_FOLDER, RESULTS_FILE
from ltp.errors import UserError
from ltp.plan import Run

CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
METRICS_FILE = "metrics.jsonl"
_OWN = (CONFIG_FILE, CHECKPOINT_FOLDER, METRICS_FILE, MODEL_FOLDER, RESULTS_FILE)

#: Keys that may differ when a run is started again: they decide neither what is learned nor from what.
_FREE = (
    *("output_root", "overwrite", "restore", "recipe", "logger"),
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


def check_same(run: Run) -> None:
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
    free = (*_FREE, "model") if run.parent is not None or run.missing is not None else _FREE
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


def open_directory(run: Run) -> Path | None:
    """Make the run directory ready for training.

    Returns:
        The checkpoint to resume from, or None for a fresh start.
    """
    if run.settings.overwrite:
        clear(run.directory)
    run.directory.mkdir(parents=True, exist_ok=True)
    write_atomically(
        run.directory / CONFIG_FILE, yaml.safe_dump(stored_config(run), sort_keys=False, allow_unicode=True)
    )
    return last_checkpoint(run.directory)


def last_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that an unfinished run resumes from."""
    path = directory / CHECKPOINT_FOLDER / LAST_CHECKPOINT
    return path if path.is_file() else None


def clear(directory: Path) -> None:
    """Remove what a run wrote.

    Runs inside (``hard/``) stay: their stored parent no longer matches, which :func:`check_same` reports.
    """
    for name in reversed(_OWN):  # results first: what is half removed must not look finished
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Write ``results.json`` atomically; it gets a ``run_id`` that tells this training from a later one."""
    content = {**results, "run_id": uuid.uuid4().hex[:12]}
    write_atomically(directory / RESULTS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is either whole or absent, also when the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
