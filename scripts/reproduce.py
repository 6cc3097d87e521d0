"""The paper's protocol for a task: dense, the LTP grid, both baselines, one table of all runs.

``python scripts/reproduce.py mrpc --dry-run`` shows the commands and how many jobs they are. Further overrides go to
every command (``model=roberta-base launcher=parallel seed=0,1,2``), with two exceptions: a key that sweeps have in
their grid replaces it there and goes nowhere else (``lr=1e-5 prune.lambda_threshold=0.1``), and the dense run gets no
``prune.`` key. Started again, it does what is missing.
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

import yaml

from ltp.command.cli import config_dir
from ltp.sweeps.record import number_of_jobs

TRAIN = (sys.executable, "-m", "ltp.train")
REPORT = (sys.executable, "-m", "ltp.report")
SWEEPS = ("ltp", "manual", "topk")
#: The keys, or the groups of keys, that decide where the runs of a task go.
PLACE = ("task", "model", "experiment", "output_root")


def key_of(override: str) -> str:
    """The key of an override: ``lr`` of ``++lr=1e-5``."""
    return override.split("=", 1)[0].lstrip("+~")


def grid_of(sweep: str) -> dict[str, Any]:
    """The keys that a sweep varies, with their values as in an override."""
    content = yaml.safe_load((Path(config_dir()) / "sweep" / f"{sweep}.yaml").read_text(encoding="utf-8"))
    return content["hydra"]["sweeper"]["params"]


def steps_of(task: str, overrides: list[str]) -> list[tuple[list[str], dict[str, Any]]]:
    """The commands in their order: the overrides of each, and the grid of its sweep."""
    grids = {sweep: grid_of(sweep) for sweep in SWEEPS}
    in_grids = {key for grid in grids.values() for key in grid}
    everywhere = [word for word in overrides if key_of(word) not in in_grids]
    dense = [word for word in everywhere if not key_of(word).startswith("prune.")]
    steps: list[tuple[list[str], dict[str, Any]]] = [(["stage=finetune", f"task={task}", *dense], {})]
    for sweep, grid in grids.items():
        own = [word for word in overrides if key_of(word) in grid]
        steps.append(([f"sweep={sweep}", f"task={task}", *everywhere, *own], grid))
    return steps


def directory_of(words: Sequence[str]) -> Path | None:
    """The run directory of a command, as ``ltp.train`` names it; None where it rejects the overrides."""
    shown = subprocess.run([*TRAIN, "--cfg", "job", *words], stdout=subprocess.PIPE, text=True)
    directory = re.search(r"^# run directory: (.*)", shown.stdout)
    return Path(directory[1]) if directory else None


def folder_of(dense: list[str]) -> Path | None:
    """The folder of all runs of the task and model; None where ``ltp.train`` rejects the overrides."""
    directory = directory_of([word for word in dense if key_of(word).split(".")[0] in PLACE])
    return directory.parents[2] if directory is not None else None


def run(*command: str) -> int:
    """The exit code of a command, whose business Ctrl-C and SIGTERM are: it ends its jobs before it ends."""
    process = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the terminal sends it to the command too
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    return process.wait()


def main(task: str, overrides: list[str], dry_run: bool) -> int:
    """Run the protocol, or show what it would run.

    Returns:
        0, or the exit code of a step that failed: of the dense run at once, of a sweep when the others are done.
    """
    steps = steps_of(task, overrides)
    folder = folder_of(steps[0][0])
    if folder is None:
        return 2
    for number, (words, grid) in enumerate(steps, 1):
        jobs = number_of_jobs({"_target_": "BasicSweeper", "params": grid}, words)
        print(f"{number}. {jobs:3} {'job ' if jobs == 1 else 'jobs'}  python -m ltp.train -m {shlex.join(words)}")
    print(f"{len(steps) + 1}. the table  python -m ltp.report {folder}", flush=True)
    if dry_run:
        return 0
    failed = 0
    for words, grid in steps:
        code = run(*TRAIN, "-m", *words)
        is_dense = not grid
        if code and (is_dense or code not in (1, 2)):  # without the dense run nothing else starts; else a signal
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
