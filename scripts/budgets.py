"""Budgets beside fixed lambdas at the same cost: what ``prune.target_flops`` is worth on a task.

``python scripts/budgets.py demo prune.lambda_threshold=0.05,0.2 seed=0,1,2`` trains learned thresholds with each lambda
and seed up to the hard stage, then, beside each of these runs, one with the same seed whose budget is what that run
came to. The table has a row a lambda: both means over the seeds, and the mean of the differences with its standard
error.

Further overrides go to every command, except that ``prune.temperature`` and ``prune.lr_threshold`` go to the lambdas
only, since a budget has its own, and ``launcher=`` and ``hydra.`` keys to the lambdas' sweep. A stage's own settings
are its recipe's: ``recipe.stages.soft.epochs.small=1``. Started again, it does what is missing.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reproduce import TRAIN, directory_of, key_of, run
from rich.console import Console
from rich.table import Table

from ltp.runs.directory import is_finished, read_results

LAMBDA, SEED = "prune.lambda_threshold", "seed"
#: The grid, where the command line has none.
DEFAULTS = {LAMBDA: "0.025,0.1,0.4,1.6", SEED: "0,1,2"}
#: What a budget takes the place of, or has a value of its own for.
OF_LAMBDAS = (LAMBDA, "prune.temperature", "prune.lr_threshold")


@dataclass(frozen=True)
class Commands:
    """The overrides of what is run.

    Attributes:
        lambdas, seeds: the grid.
        common: of every run.
        of_lambdas: of the runs with a lambda.
        of_sweep: of their sweep, but of no single run.
    """

    lambdas: list[str]
    seeds: list[str]
    common: list[str]
    of_lambdas: list[str]
    of_sweep: list[str]

    def sweep(self) -> list[str]:
        """All runs with a lambda."""
        grid = [f"{LAMBDA}={','.join(self.lambdas)}", f"{SEED}={','.join(self.seeds)}"]
        return ["-m", *self.common, *self.of_lambdas, *self.of_sweep, *grid]

    def fixed(self, value: str, seed: str) -> list[str]:
        """One of them."""
        return [*self.common, *self.of_lambdas, f"{LAMBDA}={value}", f"{SEED}={seed}"]

    def budgeted(self, budget: float, seed: str) -> list[str]:
        """A run with a budget."""
        return [*self.common, f"prune.target_flops={budget:.3f}", f"{SEED}={seed}"]


def commands_of(task: str, overrides: Sequence[str]) -> Commands:
    """Sort the overrides by the runs that they are for."""
    grid = dict(DEFAULTS)
    common, of_lambdas, of_sweep = ["prune=threshold", "stage=hard", f"task={task}"], [], []
    for word in overrides:
        key = key_of(word)
        if key in grid:
            grid[key] = word.split("=", 1)[1]
        elif key in OF_LAMBDAS:
            of_lambdas.append(word)
        elif key == "launcher" or key.startswith("hydra"):
            of_sweep.append(word)
        else:
            common.append(word)
    return Commands(grid[LAMBDA].split(","), grid[SEED].split(","), common, of_lambdas, of_sweep)


def results_of(words: Sequence[str]) -> dict[str, Any] | None:
    """What a run came to; None where it is not finished."""
    directory = directory_of(words)
    return read_results(directory) if directory is not None and is_finished(directory) else None


def row(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """A row of the table: costs, the main metric in per cent, and how far budgets are ahead.

    Args:
        pairs: results with a lambda and with a budget, a pair a seed.
    """
    columns = []
    for side in zip(*pairs, strict=True):
        metric = [100 * results["metric"]["value"] for results in side]
        columns += [f"{statistics.mean(one['relative_flops'] for one in side):.3f}", f"{statistics.mean(metric):.2f}"]
    ahead = [100 * (budget["metric"]["value"] - fixed["metric"]["value"]) for fixed, budget in pairs]
    error = f" ± {statistics.stdev(ahead) / len(ahead) ** 0.5:.2f}" if len(ahead) > 1 else ""
    return [*columns, f"{statistics.mean(ahead):+.2f}{error}", str(len(pairs))]


def main(task: str, overrides: Sequence[str]) -> int:
    """Train what is missing and print the table.

    Returns:
        0, or the exit code of the last command that failed; what could be compared is in the table all the same.
    """
    commands = commands_of(task, overrides)
    code = run(*TRAIN, *commands.sweep())
    if code not in (0, 1):
        return code
    table = Table("lambda", "FLOPs", "metric", "budget: FLOPs", "metric", "ahead", "seeds", title=f"{task}: per cent")
    for value in commands.lambdas:
        pairs = []
        for seed in commands.seeds:
            fixed = results_of(commands.fixed(value, seed))
            if fixed is None:
                continue
            words = commands.budgeted(fixed["relative_flops"], seed)
            ended = run(*TRAIN, *words)
            if ended not in (0, 1, 2):  # a signal
                return ended
            budgeted = results_of(words) if ended == 0 else None
            if budgeted is not None:
                pairs.append((fixed, budgeted))
            code = ended or code
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
