"""Run the paper's protocol for a task: the dense run, the LTP grid, both baselines, and one table of all runs.

``python scripts/reproduce.py mrpc --dry-run`` shows the commands and their numbers of jobs. Further overrides go to
every command (``model=roberta-base launcher=parallel seed=0,1,2``), with two exceptions: a key of a sweep's grid
replaces its values in that grid and goes to no other command (``lr=1e-5 prune.lambda_threshold=0.1``), and the dense
run gets no ``prune.`` key. Started again, the script runs only what is missing.
"""

import argparse
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltp.command.sweeping import jobs_of_grid
from ltp.pruning import variants

TRAIN = (sys.executable, "-m", "ltp.train")
REPORT = (sys.executable, "-m", "ltp.report")
SWEEPS = ("ltp", "manual", "topk")
#: The keys, or groups of keys, that determine the folder of a task's runs.
LOCATION_KEYS = ("task", "model", "experiment", "output_root")


def override_key(override: str) -> str:
    """Return the key of an override: ``lr`` for ``++lr=1e-5``."""
    return override.split("=", 1)[0].lstrip("+~")


def read_grid(sweep: str) -> dict[str, Any]:
    """Return the keys that a sweep varies, with their values as in an override."""
    return dict(next(item.grid for item in variants().values() if (item.sweep or item.name) == sweep))


def protocol_steps(task: str, overrides: list[str]) -> list[tuple[list[str], dict[str, Any]]]:
    """Return the steps in order, each as the overrides of its command and the grid of its sweep."""
    grids = {sweep: read_grid(sweep) for sweep in SWEEPS}
    grid_keys = {key for grid in grids.values() for key in grid}
    common = [word for word in overrides if override_key(word) not in grid_keys]
    dense = [word for word in common if not override_key(word).startswith("prune.")]
    steps: list[tuple[list[str], dict[str, Any]]] = [(["stage=finetune", f"task={task}", *dense], {})]
    for sweep, grid in grids.items():
        replacements = [word for word in overrides if override_key(word) in grid]
        steps.append(([f"sweep={sweep}", f"task={task}", *common, *replacements], grid))
    return steps


def run_directory(words: Sequence[str]) -> Path | None:
    """Ask ``ltp.train`` for the run directory of a command; None if it rejects the overrides."""
    config = subprocess.run([*TRAIN, "--cfg", "job", *words], stdout=subprocess.PIPE, text=True)
    match = re.search(r"^# run directory: (.*)", config.stdout)
    return Path(match[1]) if match else None


def runs_folder(dense: list[str]) -> Path | None:
    """Return the folder of all runs of the task and model; None if ``ltp.train`` rejects the overrides."""
    directory = run_directory([word for word in dense if override_key(word).split(".")[0] in LOCATION_KEYS])
    if directory is None:
        return None
    return next(folder.parent for folder in directory.parents if folder.name == "finetune")


def run(*command: str) -> int:
    """Run a command and return its exit code. Ctrl-C and SIGTERM go to the command, which first ends its jobs."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the terminal also sends it to the command
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    return process.wait()


def main(task: str, overrides: list[str], dry_run: bool) -> int:
    """Run the protocol, or print its commands.

    Returns:
        0, or the exit code of a failed step. A failed dense run stops the protocol; a failed sweep does not.
    """
    steps = protocol_steps(task, overrides)
    folder = runs_folder(steps[0][0])
    if folder is None:
        return 2
    for number, (words, grid) in enumerate(steps, 1):
        jobs = len(jobs_of_grid({"_target_": "BasicSweeper", "params": grid}, words) or ())
        print(f"{number}. {jobs:3} {'job ' if jobs == 1 else 'jobs'}  python -m ltp.train -m {shlex.join(words)}")
    print(f"{len(steps) + 1}. the table  python -m ltp.report {folder}", flush=True)
    if dry_run:
        return 0
    failed = 0
    for words, grid in steps:
        code = run(*TRAIN, "-m", *words)
        is_dense = not grid
        if code and (is_dense or code not in (1, 2)):  # all other steps need the dense run; other codes are signals
            return code
        failed = failed or code
    return run(*REPORT, str(folder)) or failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="rte, mrpc, stsb, cola, sst2, qnli, qqp, mnli or demo")
    parser.add_argument("overrides", nargs="*", help="of python -m ltp.train")
    parser.add_argument("--dry-run", action="store_true", help="show the commands, run nothing")
    arguments = parser.parse_intermixed_args()
    sys.exit(main(arguments.task, arguments.overrides, arguments.dry_run))
