"""The runs below some folders: what is finished, what is being written, and how to go on with the rest."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltp.errors import printable
from ltp.reporting.collect import UNFINISHED, collect
from ltp.runs.checkpoints import METRICS_FILE, has_checkpoint, run_config
from ltp.runs.locks import writer_of
from ltp.runs.summary import describe_method

#: The states of a run, in the order of the listing.
STATES = ("finished", "running", "unfinished", "unusable")


@dataclass(frozen=True)
class ListedRun:
    """A run, or a folder that cannot be used as one.

    Attributes:
        directory: its directory.
        state: one of :data:`STATES`.
        task, model: their names; None where they are not known.
        method: its method and what determines its cost.
        metric: value of the task's main metric; None if it is not finished, or undefined.
        relative_flops: cost; None if it is not finished.
        step: the last optimiser step that was logged; None if it is finished, or has not begun.
        resume: the command that goes on with it.
        note: why it cannot be used, or who writes it.
    """

    directory: str
    state: str
    task: str | None = None
    model: str | None = None
    method: str | None = None
    metric: float | None = None
    relative_flops: float | None = None
    step: int | None = None
    resume: str | None = None
    note: str = ""


def list_runs(folders: Sequence[Path]) -> list[ListedRun]:
    """Find the runs in and below some folders, sorted by state and path."""
    collection = collect(folders)
    runs = [
        ListedRun(
            str(run.directory),
            "finished",
            run.task,
            run.model,
            describe_method(run.results) if "method" in run.results else run.method,
            run.metric,
            run.relative_flops,
        )
        for run in collection.runs
    ]
    for entry in collection.left_out:
        if entry.why == UNFINISHED:
            runs.append(_unfinished(entry.path))
        else:
            runs.append(ListedRun(str(entry.path), "unusable", note=": ".join(filter(None, (entry.why, entry.detail)))))
    return sorted(runs, key=lambda run: (STATES.index(run.state), run.directory))


def _unfinished(directory: Path) -> ListedRun:
    config = run_config(directory)
    writer = writer_of(directory)
    step = _last_step(directory)
    started = "from its last checkpoint" if has_checkpoint(directory) else "from its start"
    return ListedRun(
        str(directory),
        "running" if writer is not None else "unfinished",
        task=_name(config.get("task")),
        model=_name(config.get("model")),
        method=f"{config.get('method', '?')}, {config.get('stage', '?')}",
        step=step,
        resume=None if writer is not None else _resume(config),
        note=writer or started,
    )


def _name(group: Any) -> str | None:
    return str(group["name"]) if isinstance(group, dict) and "name" in group else None


def _last_step(directory: Path) -> int | None:
    try:
        with (directory / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"]) + 1
        except (ValueError, KeyError, TypeError):  # a line that is being written
            continue
    return None


def _resume(config: dict[str, Any]) -> str | None:
    """Return the command that goes on with a run; None for runs of ltp 0.1, which do not store it."""
    command, folder = config.get("command"), config.get("working_directory")
    if not isinstance(command, str):
        return None
    if not isinstance(folder, str) or Path(folder) == Path.cwd():
        return command
    return f"cd {shlex.quote(folder)} && {command}"


def print_runs(runs: Sequence[ListedRun], console: Console) -> None:
    """Print one table per state; texts from files are printed without control characters."""
    for state in STATES:
        alike = [run for run in runs if run.state == state]
        if not alike:
            continue
        table = Table(title=f"{state}: {len(alike)}", title_justify="left", box=None, pad_edge=False)
        names = {
            "finished": ("task", "model", "method", "metric", "FLOPs", "directory"),
            "unusable": ("directory", "reason"),
        }.get(state, ("task", "model", "method", "step", "directory"))
        for name in names:
            table.add_column(name, no_wrap=True, justify="right" if name in ("metric", "FLOPs", "step") else "left")
        for run in alike:
            cells = {
                "task": run.task or "?",
                "model": run.model or "?",
                "method": run.method or "?",
                "metric": "–" if run.metric is None else f"{run.metric:.4f}",
                "FLOPs": "" if run.relative_flops is None else f"{run.relative_flops:.3f}",
                "step": "–" if run.step is None else str(run.step),
                "directory": run.directory,
                "reason": run.note,
            }
            table.add_row(*(Text(printable(cells[name])) for name in names))
        console.print(table, soft_wrap=True)
        console.print()
    commands = dict.fromkeys(run.resume for run in runs if run.resume is not None)
    if commands:
        console.print(Text("go on with the unfinished ones:", style="bold"))
        for command in commands:
            console.print(Text(f"  {printable(command)}"), soft_wrap=True)
    without = [run.directory for run in runs if run.state == "unfinished" and run.resume is None]
    if without:
        text = f"{len(without)} unfinished runs of an earlier version: start the command again that began them"
        console.print(Text(text))


def as_json(runs: Sequence[ListedRun]) -> str:
    """Write the listing as JSON: a list of objects."""
    return json.dumps([asdict(run) for run in runs], indent=2, ensure_ascii=False) + "\n"
