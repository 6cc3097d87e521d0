"""The trainings of a leaderboard: sweeps of ``ltp.train``, in a process of their own, and the runs that they made."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltp.comparison.request import LeaderboardSettings
from ltp.errors import RunError
from ltp.sweeps.processes import TRAIN_MODULE


@dataclass(frozen=True)
class Jobs:
    """The outcome of a sweep.

    Attributes:
        directories: run directories of its finished jobs.
        failed: (overrides, message) of the others.
    """

    directories: list[Path]
    failed: list[tuple[str, str]]


def dense_sweep(settings: LeaderboardSettings) -> list[str]:
    """Return the overrides of the sweep over the dense parents."""
    return ["stage=finetune", f"seed={_joined(settings.seeds)}", *settings.train]


def shallow_sweep(settings: LeaderboardSettings, num_layers: int) -> list[str]:
    """Return the overrides of the sweep over dense encoders of fewer layers, of about the budgets' costs."""
    counts = sorted({min(max(round(budget * num_layers), 1), num_layers - 1) for budget in settings.budgets})
    return [*dense_sweep(settings), f"model.num_layers={_joined(counts)}"]


def method_sweep(settings: LeaderboardSettings) -> list[str]:
    """Return the overrides of the sweep over methods, budgets and seeds."""
    grid = {"prune": settings.methods, "prune.target_flops": settings.budgets, "seed": settings.seeds}
    return ["stage=hard", *(f"{key}={_joined(values)}" for key, values in grid.items()), *settings.train]


def _joined(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def run_sweep(overrides: Sequence[str], output_root: Path) -> Jobs:
    """Train the runs of a sweep that are not finished.

    Args:
        overrides: the command line of the sweep.
        output_root: the folder of all runs.

    Raises:
        RunError: no job was started.
    """
    process = subprocess.Popen([sys.executable, "-m", TRAIN_MODULE, "-m", *overrides])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    records = sorted((output_root / ".multirun").glob(f"*_{process.pid}.jsonl"))
    if not records:
        raise RunError(f"the trainings were not started (exit code {code}): see the message above")
    _, *jobs = map(json.loads, records[-1].read_text(encoding="utf-8").splitlines())
    finished = [Path(job["directory"]) for job in jobs if job["status"] != "failed"]
    failed = [(job["overrides"], job["message"] or "") for job in jobs if job["status"] == "failed"]
    return Jobs(sorted(set(finished)), failed)
