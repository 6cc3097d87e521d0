"""Compare FLOPs budgets (``prune.target_flops``) with fixed lambdas at the same cost.

``python scripts/budgets.py demo prune.lambda_threshold=0.05,0.2 seed=0,1,2`` trains learned thresholds with each lambda
and seed up to the hard stage. For each of these runs it then trains one with the same seed whose budget is that run's
relative FLOPs. The table has one row per lambda: the means of both over the seeds, and the mean difference with its
standard error.

Further overrides go to every command, except: ``prune.temperature`` and ``prune.lr_threshold`` go only to the runs with
a lambda, because runs with a budget have other defaults; ``launcher=`` and ``hydra.`` keys go only to the sweep over
lambdas. Settings of one stage are set in its recipe: ``recipe.stages.soft.epochs.small=1``. Started again, the script
runs only what is missing.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reproduce import TRAIN, override_key, run, run_directory
from rich.console import Console
from rich.table import Table

from ltp.runs.checkpoints import is_finished
from ltp.runs.results import read_results

LAMBDA, SEED = "prune.lambda_threshold", "seed"
#: The default grid.
DEFAULTS = {LAMBDA: "0.025,0.1,0.4,1.6", SEED: "0,1,2"}
#: Keys that a budget replaces, or for which runs with a budget have another default.
LAMBDA_KEYS = (LAMBDA, "prune.temperature", "prune.lr_threshold")


@dataclass(frozen=True)
class Commands:
    """The overrides of all runs.

    Attributes:
        lambdas: lambdas of the grid.
        seeds: seeds of the grid.
        common: overrides of every run.
        lambda_only: overrides of the runs with a lambda.
        sweep_only: overrides of the sweep over lambdas, for no single run.
    """

    lambdas: list[str]
    seeds: list[str]
    common: list[str]
    lambda_only: list[str]
    sweep_only: list[str]

    def sweep(self) -> list[str]:
        """Return the overrides of the sweep over all lambdas and seeds."""
        grid = [f"{LAMBDA}={','.join(self.lambdas)}", f"{SEED}={','.join(self.seeds)}"]
        return ["-m", *self.common, *self.lambda_only, *self.sweep_only, *grid]

    def fixed(self, value: str, seed: str) -> list[str]:
        """Return the overrides of one run with a lambda."""
        return [*self.common, *self.lambda_only, f"{LAMBDA}={value}", f"{SEED}={seed}"]

    def budgeted(self, budget: float, seed: str) -> list[str]:
        """Return the overrides of one run with a budget."""
        return [*self.common, f"prune.target_flops={budget:.3f}", f"{SEED}={seed}"]


def build_commands(task: str, overrides: Sequence[str]) -> Commands:
    """Assign the overrides to the runs that they apply to."""
    grid = dict(DEFAULTS)
    common, lambda_only, sweep_only = ["prune=threshold", "stage=hard", f"task={task}"], [], []
    for word in overrides:
        key = override_key(word)
        if key in grid:
            grid[key] = word.split("=", 1)[1]
        elif key in LAMBDA_KEYS:
            lambda_only.append(word)
        elif key == "launcher" or key.startswith("hydra"):
            sweep_only.append(word)
        else:
            common.append(word)
    return Commands(grid[LAMBDA].split(","), grid[SEED].split(","), common, lambda_only, sweep_only)


def finished_results(words: Sequence[str]) -> dict[str, Any] | None:
    """Read the results of a run; None if it is not finished."""
    directory = run_directory(words)
    return read_results(directory) if directory is not None and is_finished(directory) else None


def row(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Build a table row: costs, main metrics in per cent, and the mean difference (budget minus lambda).

    Args:
        pairs: results with a lambda and with a budget, one pair per seed.
    """
    columns = []
    for side in zip(*pairs, strict=True):
        metric = [100 * results["metric"]["value"] for results in side]
        cost = statistics.mean(results["relative_flops"] for results in side)
        columns += [f"{cost:.3f}", f"{statistics.mean(metric):.2f}"]
    differences = [100 * (budget["metric"]["value"] - fixed["metric"]["value"]) for fixed, budget in pairs]
    error = f" ± {statistics.stdev(differences) / len(differences) ** 0.5:.2f}" if len(differences) > 1 else ""
    return [*columns, f"{statistics.mean(differences):+.2f}{error}", str(len(pairs))]


def main(task: str, overrides: Sequence[str]) -> int:
    """Train the missing runs and print the table.

    Returns:
        0, or the exit code of the last failed command; the table then has the pairs that are finished.
    """
    commands = build_commands(task, overrides)
    code = run(*TRAIN, *commands.sweep())
    if code not in (0, 1):
        return code
    table = Table("lambda", "FLOPs", "metric", "budget: FLOPs", "metric", "ahead", "seeds", title=f"{task}: per cent")
    for value in commands.lambdas:
        pairs = []
        for seed in commands.seeds:
            fixed = finished_results(commands.fixed(value, seed))
            if fixed is None:
                continue
            words = commands.budgeted(fixed["relative_flops"], seed)
            run_code = run(*TRAIN, *words)
            if run_code not in (0, 1, 2):  # a signal
                return run_code
            budgeted = finished_results(words) if run_code == 0 else None
            if budgeted is not None:
                pairs.append((fixed, budgeted))
            code = run_code or code
        if pairs:
            table.add_row(value, *row(pairs))
    Console().print(table)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="rte, mrpc, stsb, cola, sst2, qnli, qqp, mnli or demo")
    parser.add_argument("overrides", nargs="*", help="of python -m ltp.train")
    arguments = parser.parse_intermixed_args()
    sys.exit(main(arguments.task, arguments.overrides))
